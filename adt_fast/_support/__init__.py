"""What every part of the library uses: checks and messages, files, memory layouts, models lent and given back."""
