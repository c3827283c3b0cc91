"""DELTA and its peers: fine-tune a pretrained network without losing what it knows."""

import lazy_loader

# The public names are listed in __init__.pyi and imported when they are first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
