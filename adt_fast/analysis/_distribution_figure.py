"""The figure of :class:`adt_fast.analysis.DistributionPicture`: a band for each image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from . import _figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .distribution import DistributionPicture

_RIGHT, _WRONG = _figures.COLORS[0], _figures.COLORS[1]
_DIVERGING = "RdBu_r"  # of perturbations of images in grey: white is none
_FAINT = "0.35"

# Inches.
_MARGIN, _GAP, _GROUP_GAP = 0.06, 0.06, 0.28
_HEADING, _TITLE, _CAPTION, _BARS = 0.29, 0.18, 0.27, 0.4


def draw_distributions(figure: Figure, picture: DistributionPicture) -> None:
    """A band for each image: it, samples above their perturbations, mean and standard deviation of all perturbations in
    twice the size, and PGD's point."""
    drawing = _Drawing(figure, picture)
    drawing.headings()
    for band in range(len(picture.images)):
        drawing.band(band)
    drawing.legend()
    drawing.color_bars()


class _Drawing:
    """Where things are, in inches; bands are counted from the top."""

    def __init__(self, figure: Figure, picture: DistributionPicture) -> None:
        self.figure, self.picture = figure, picture
        shown = picture.examples.shape[1]
        height, width = picture.images.shape[2:]
        gaps = 2 * _MARGIN + 3 * _GROUP_GAP + (shown + 2) * _GAP
        self.width = (_figures.PAGE_WIDTH - gaps) / (1 + shown + 4 + 1)  # of a cell
        self.large = 2 * self.width + _GAP  # of mean and spread
        self.aspect = height / width
        self.cell_height = self.width * self.aspect
        self.band_height = _TITLE + self.large * self.aspect + _CAPTION
        self.height = _HEADING + len(picture.images) * self.band_height + _BARS

        self.samples = [_MARGIN + self.width + _GROUP_GAP + index * (self.width + _GAP) for index in range(shown)]
        self.mean = self.samples[-1] + self.width + _GROUP_GAP
        self.spread = self.mean + self.large + _GAP
        self.point = self.spread + self.large + _GROUP_GAP

        # [N, H, W], in units of epsilon
        self.spreads = (picture.std / picture.epsilon).mean(1)
        self.highest = float(self.spreads.max()) or 1.0
        self.is_rgb = picture.images.shape[1] == 3
        figure.set_layout_engine("none")
        figure.set_size_inches(_figures.PAGE_WIDTH, self.height)

    def headings(self) -> None:
        """Over the groups of columns, each with a rule."""
        groups = (
            (_MARGIN, _MARGIN + self.width, "image $x$"),
            (self.samples[0], self.samples[-1] + self.width, r"samples of $p(\delta)$"),
            (self.mean, self.spread + self.large, r"the distribution $p(\delta)$ that ADT learns"),
            (self.point, self.point + self.width, "PGD-20"),
        )
        for left, right, text in groups:
            self.text((left + right) / 2, self.height - 0.12, text, va="center", weight="bold")
            rule = self.axes(left, self.height - 0.25, right - left, 0.02)
            rule.set_axis_off()
            rule.axhline(0.5, color="0.3", linewidth=0.8)

    def band(self, band: int) -> None:
        """One image's."""
        picture, top = self.picture, self.height - _HEADING - band * self.band_height
        upper = top - _TITLE - self.cell_height
        lower = top - _TITLE - self.large * self.aspect
        label = int(picture.labels[band])

        self.image(_MARGIN, upper, picture.images[band], int(picture.natural_classes[band]), label)
        for place, (x_adv, found) in enumerate(zip(picture.examples[band], picture.example_classes[band].tolist())):
            left = self.samples[place]
            self.image(left, upper, x_adv, found, label)
            self.perturbation(left, lower, self.width, x_adv - picture.images[band])
        self.image(self.point, upper, picture.images[band] + picture.pgd[band], int(picture.pgd_classes[band]), label)
        self.perturbation(self.point, lower, self.width, picture.pgd[band])

        self.perturbation(self.mean, lower, self.large, picture.mean[band]).set_title(r"mean of $\delta$", pad=3)
        axes = self.cell(self.spread, lower, self.large)
        axes.imshow(self.spreads[band].numpy(), vmin=0, vmax=self.highest, cmap=_figures.SEQUENTIAL,
                    interpolation="nearest")  # fmt: skip
        axes.set_title(r"standard deviation of $\delta$", pad=3)
        self.numbers(band, upper, lower)

    def numbers(self, band: int, upper: float, lower: float) -> None:
        """What the model makes of it: below the image, and below the groups."""
        picture = self.picture
        probabilities = {"image": picture.natural_probabilities, "samples": picture.sample_probabilities,
                         "PGD": picture.pgd_probabilities}  # fmt: skip
        lines = [f"p({picture.class_name(int(picture.labels[band]))})"]
        lines += [f"{name} {values[band]:.2f}" for name, values in probabilities.items()]
        for place, line in enumerate(lines):
            self.note(_MARGIN + self.width / 2, upper - 0.06 - 0.135 * place, line)
        middle = (self.samples[0] + self.samples[-1] + self.width) / 2
        self.note(middle, lower - 0.04, f"{picture.misclassified[band]:.0%} of {picture.samples:,} misclassified")
        entropy = f"entropy {picture.entropies[band]:.2f} nats per element (uniform: {picture.highest_entropy:.2f})"
        self.note(self.spread - _GAP / 2, lower - 0.04, entropy.replace("-", "\N{MINUS SIGN}"))
        self.note(self.point + self.width / 2, lower - 0.04, "one point")
        for bottom, text in ((upper, r"$x + \delta$"), (lower, r"$\delta$")):
            for left in (self.samples[0], self.point):
                self.note(left - 0.05, bottom + self.cell_height / 2, text, ha="right", va="center", rotation=90)

    def image(self, left: float, bottom: float, image: Tensor, found: int, label: int) -> None:
        """An image under the class that it is taken for."""
        axes = self.cell(left, bottom, self.width)
        axes.imshow(**_as_picture(image, 0.0, 1.0, "gray"))
        color = _RIGHT if found == label else _WRONG
        axes.set_title(self.picture.class_name(found), color=color, weight="bold", fontsize=7, pad=3)

    def perturbation(self, left: float, bottom: float, width: float, delta: Tensor) -> Axes:
        """From -epsilon to epsilon."""
        axes = self.cell(left, bottom, width)
        axes.imshow(**_as_picture(delta / self.picture.epsilon, -1.0, 1.0, _DIVERGING))
        return axes

    def legend(self) -> None:
        """Below images and samples: what titles and numbers say."""
        self.note(_MARGIN, _BARS - 0.05, "predicted class:", ha="left")
        self.note(_MARGIN + 0.82, _BARS - 0.05, "right", ha="left", color=_RIGHT, weight="bold")
        self.note(_MARGIN + 1.12, _BARS - 0.05, "wrong", ha="left", color=_WRONG, weight="bold")
        self.note(_MARGIN, _BARS - 0.19, "p: the model's probability of the true class", ha="left")

    def color_bars(self) -> None:
        """Below mean and spread."""
        scale = "gray" if self.is_rgb else _DIVERGING
        label = r"$\delta\,/\,\epsilon$" + (" of each colour" if self.is_rgb else "")
        self.color_bar(self.mean, scale, (-1.0, 1.0), label)
        self.color_bar(self.spread, _figures.SEQUENTIAL, (0.0, self.highest), r"standard deviation $/\,\epsilon$")

    def color_bar(self, left: float, colors: str, limits: tuple[float, float], label: str) -> None:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        axes = self.axes(left + 0.1, _BARS - 0.07, self.large - 0.2, 0.07)
        bar = self.figure.colorbar(ScalarMappable(Normalize(*limits), colors), cax=axes, orientation="horizontal")
        bar.outline.set_linewidth(0.5)
        bar.ax.tick_params(length=2, pad=1.5)
        bar.set_label(label, labelpad=1, fontsize=7)

    def cell(self, left: float, bottom: float, width: float) -> Axes:
        """Empty axes with a thin frame, as high as an image of that width."""
        axes = self.axes(left, bottom, width, width * self.aspect)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color="0.6", linewidth=0.5)
        return axes

    def axes(self, left: float, bottom: float, width: float, height: float) -> Axes:
        across, up = _figures.PAGE_WIDTH, self.height
        return self.figure.add_axes((left / across, bottom / up, width / across, height / up))

    def note(self, x: float, y: float, text: str, **style: Any) -> None:
        self.text(x, y, text, **({"va": "top", "fontsize": 7, "color": _FAINT} | style))

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        self.figure.text(x / _figures.PAGE_WIDTH, y / self.height, text, **({"ha": "center"} | style))


def _as_picture(values: Tensor, low: float, high: float, colors: str) -> dict[str, Any]:
    """How matplotlib shows ``[C, H, W]``: three channels as red, green and blue, low dark and high bright; else their
    mean."""
    if len(values) == 3:
        rgb = ((values - low) / (high - low)).clamp(0, 1).permute(1, 2, 0)
        return {"X": rgb.numpy(), "interpolation": "nearest"}
    return {"X": values.mean(0).numpy(), "cmap": colors, "vmin": low, "vmax": high, "interpolation": "nearest"}
