"""Supervised finetuning: the same loss, where only what the assistant says is learned.

The stream marks everything else with the target -1, which the GPT's loss leaves out.
"""

from nanolit.phases.core import Phase


class Sft(Phase):
    """Next-token cross-entropy over the assistant's tokens."""
