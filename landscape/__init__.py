"""Loss landscapes, curvature and sharpness of fine-tuned language models.

The public names, and the module each one lives in, are listed in `__init__.pyi`. A name is loaded when it is first
used, so that `landscape --help` does not wait for torch.
"""

from importlib.metadata import version

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = version("landscape-lm")
del version, lazy_loader
