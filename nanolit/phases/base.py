"""Base pretraining: predict the next token of text. The loss of the core is all there is to it."""

from nanolit.phases.core import Phase


class Base(Phase):
    """Next-token cross-entropy over every token of the stream."""
