"""What adapters have in common: they decide which weights are trained, and leave a plain model behind."""

from torch import nn

from methods.part import Part


class Adapter(Part):
    """Base of all adapters."""

    def apply(self, model: nn.Module, seed: int) -> nn.Module:
        """The model with the adapter's weights in it, and nothing else trained; its output is that of `model`."""
        raise NotImplementedError(f"{type(self).__name__} must implement apply")

    def merge(self, model: nn.Module) -> nn.Module:
        """The plain model that computes what the adapted one does."""
        raise NotImplementedError(f"{type(self).__name__} must implement merge")
