"""What training runs and evaluations of trained models are made of: data, trainer, folder, the state to resume."""
