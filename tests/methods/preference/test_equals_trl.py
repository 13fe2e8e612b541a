"""Loss and gradients of pair methods are those of TRL's DPOTrainer on the same weights and pairs."""

import pytest
import torch

from methods.preference.aot import Aot, AotConfig
from methods.preference.apo import Apo, ApoConfig
from methods.preference.bco import Bco, BcoConfig
from methods.preference.discopop import DiscoPop, DiscoPopConfig
from methods.preference.dpo import Dpo, DpoConfig
from methods.preference.exo import Exo, ExoConfig
from methods.preference.f_dpo import FDpo, FDpoConfig
from methods.preference.hinge import Hinge, HingeConfig
from methods.preference.ipo import Ipo, IpoConfig
from methods.preference.ln_dpo import LnDpo, LnDpoConfig
from methods.preference.nca import Nca, NcaConfig
from methods.preference.robust_dpo import RobustDpo, RobustDpoConfig
from methods.preference.rpo import Rpo, RpoConfig
from methods.preference.sppo import Sppo, SppoConfig
from tests.methods.preference.trl_dpo import one_batch, ours, random_pairs, theirs

LIVE = {"reference": "live", "beta": 0.4}
CASES = {
    "sigmoid": (Dpo(DpoConfig(**LIVE)), {}),
    "robust": (RobustDpo(RobustDpoConfig(**LIVE, label_smoothing=0.2)), {"label_smoothing": 0.2}),
    "hinge": (Hinge(HingeConfig(**LIVE)), {}),
    "ipo": (Ipo(IpoConfig(**LIVE, average=True)), {}),
    "exo_pair": (Exo(ExoConfig(**LIVE, label_smoothing=0.01)), {"label_smoothing": 0.01}),
    "nca_pair": (Nca(NcaConfig(**LIVE)), {}),
    "bco_pair": (Bco(BcoConfig(**LIVE, delta="zero")), {}),
    "sppo_hard": (Sppo(SppoConfig(**LIVE)), {}),
    "aot": (Aot(AotConfig(**LIVE, label_smoothing=0.1)), {"label_smoothing": 0.1}),
    "aot_unpaired": (Aot(AotConfig(**LIVE, variant="unpaired")), {}),
    "apo_zero": (Apo(ApoConfig(**LIVE, variant="zero")), {}),
    "apo_down": (Apo(ApoConfig(**LIVE, variant="down")), {}),
    "discopop": (DiscoPop(DiscoPopConfig(**LIVE, tau=0.3)), {"discopop_tau": 0.3}),
    "sigmoid_norm": (LnDpo(LnDpoConfig(**LIVE)), {}),
}  # fmt: skip
DIVERGENCES = {
    "reverse_kl": (FDpo(FDpoConfig(**LIVE, divergence="reverse_kl")), {}),
    "forward_kl": (FDpo(FDpoConfig(**LIVE, divergence="forward_kl")), {}),
    "js_divergence": (FDpo(FDpoConfig(**LIVE, divergence="js")), {}),
    # TRL's alpha is 1 minus the paper's
    "alpha_divergence": (FDpo(FDpoConfig(**LIVE, divergence="alpha", alpha=0.3)), {"f_alpha_divergence_coef": 0.7}),
}


def agree(a, b):
    """Whether losses and all gradients are the same."""
    assert a[1].keys() == b[1].keys() and any(gradient.abs().max() > 1e-3 for gradient in b[1].values())
    return torch.allclose(a[0], b[0], rtol=1e-4) and all(
        torch.allclose(a[1][name], b[1][name], rtol=1e-4, atol=1e-5 * float(b[1][name].abs().max())) for name in a[1]
    )


@pytest.fixture(scope="module")
def trl():
    return pytest.importorskip("trl")


@pytest.mark.parametrize("loss_type", CASES)
def test_equals_trl(trl, tmp_path, loss_type):
    method, config = CASES[loss_type]
    examples = random_pairs()
    expected = theirs(trl, examples, str(tmp_path), loss_type=loss_type, beta=0.4, **config)
    assert agree(ours(method, [one_batch(examples)]), expected)
    assert not agree(
        ours(type(method)(type(method.config)(reference="live", beta=0.5)), [one_batch(examples)]), expected
    )


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_f_dpo_equals_trl(trl, tmp_path, divergence):
    method, config = DIVERGENCES[divergence]
    examples = random_pairs()
    expected = theirs(trl, examples, str(tmp_path), f_divergence_type=divergence, beta=0.4, **config)
    for name, (other, _) in DIVERGENCES.items():
        assert agree(ours(other, [one_batch(examples)]), expected) == (name == divergence)
    assert method.config.divergence[:2] == divergence[:2]


@pytest.mark.parametrize("equally_long", [True, False])
def test_rpo_equals_trl_where_responses_are_equally_long(trl, tmp_path, equally_long):
    """TRL's likelihood is a mean over the tokens of a micro-batch, ours over those of each response."""
    examples = random_pairs(shortest=7 if equally_long else 1, longest=7)
    config = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7], "beta": 0.4}
    expected = theirs(trl, examples, str(tmp_path), **config)
    assert agree(ours(Rpo(RpoConfig(**LIVE, eta=0.7)), [one_batch(examples)]), expected) == equally_long
