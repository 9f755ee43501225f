"""What the server of the warm kernels imports to have drawn a figure before they do.

The first label that is a formula makes matplotlib build a parser and open its fonts,
which takes a third of a second, and every kernel would do it again. Importing this
module draws that label. It uses neither pyplot nor a random number, and leaves no
figure and no setting behind.
"""

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

FORMULA = r"$\mathdefault{10^{-3}} \times \lambda_{\max}$"


def draw_first_figure() -> None:
    """Draw a line on axes with a formula and a legend, and forget it."""
    figure = Figure(layout="constrained")
    canvas = FigureCanvasAgg(figure)
    ax = figure.subplots()
    ax.plot([1.0, 10.0], [1.0, 10.0], label=FORMULA)
    ax.set_title("a", loc="left")
    ax.legend()
    canvas.print_figure(io.BytesIO(), format="png", bbox_inches="tight")


draw_first_figure()
