"""Midtraining: base pretraining's loss on conversations, every token of them learned."""

from nanolit.phases.core import Phase


class Mid(Phase):
    """Next-token cross-entropy over all tokens of the conversations, the user's too."""
