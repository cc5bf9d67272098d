"""What can be asked of dispatch; needs nothing else, so that options can name it."""

MODES = ("auto", "on", "off")
"""Whether library products are used: where they are measured or estimated faster, wherever there
is one, or never."""

ROUNDINGS = ("exact", "library")
"""Whether a library may leave out roundings between a product, its bias and its activation."""
