"""The repair methods by name."""

from seft.config import RepairMethod
from seft.fit import require_vectors
from seft.models.targets import norms_and_biases
from seft.repair.all_nonzeros import AllNonzeros
from seft.repair.fixed_mask import FixedMask
from seft.repair.lora_reprune import LoraReprune
from seft.repair.masked_lora import MaskedLora
from seft.repair.method import Method, Work
from seft.repair.norms_and_biases import WithNormsAndBiases
from seft.repair.seft_method import SEFT
from seft.repair.spp import SPP

METHODS: dict[RepairMethod, type[Method]] = {
    RepairMethod.SEFT: SEFT,
    RepairMethod.FIXED_MASK: FixedMask,
    RepairMethod.MASKED_FULL: FixedMask,
    RepairMethod.MASKED_LORA: MaskedLora,
    RepairMethod.SPP: SPP,
    RepairMethod.LORA_REPRUNE: LoraReprune,
}


def make_method(work: Work) -> Method:
    """Return the configured method, which also trains the norms and biases if this is configured.

    Raises ConfigError, before it changes the model, if method, settings and model do not fit together.
    """
    if work.config.norms_and_biases:
        require_vectors(len(norms_and_biases(work.model)))
    method: Method = AllNonzeros(work) if work.config.trains_all else METHODS[work.config.method](work)
    return WithNormsAndBiases(method, work) if work.config.norms_and_biases else method
