"""Which packets a stream holds, told from their heads alone: for what is read while nobody may decode it yet."""

from typing_extensions import Buffer, disjoint_base

@disjoint_base
class Scanner:
    """Follows the packets of one connection from its first byte on."""

    def __init__(self) -> None: ...
    def scan(self, data: Buffer, start: int, size: int) -> int:
        """Look at ``size`` bytes of ``data`` from ``start`` on; return the letters of the packets that begin in them.

        Bit n stands for the n-th letter of the alphabet, from 0. A letter that is none counts as nothing: the decoder
        will say what is wrong with it.
        """
