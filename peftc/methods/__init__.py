"""One file per method; METHODS is the one tuple to extend."""

from peftc.methods.adapter import Adapter
from peftc.methods.base import Method
from peftc.methods.bitfit import BitFit
from peftc.methods.ia3 import IA3
from peftc.methods.lora import LoRA
from peftc.methods.norm import Norm
from peftc.methods.prefix import Prefix

METHODS: tuple[type[Method], ...] = (LoRA, Adapter, Prefix, IA3, BitFit, Norm)
