"""The project's networks, shaped for integer matrix units: wide, early-downsampled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDE = 8
"""Pixels per cell of the dense outputs."""

SIZE_MULTIPLE = 16
"""Image sides must be multiples of this: the context is computed at stride 16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneSize:
    """Widths and depths of the backbone.

    Parameters
    ----------
    stem, middle, context : int
        Channels at stride 4, 8 and 16.
    num_middle, num_context, num_mix : int
        Further 3x3 convolutions at stride 8 before the context, at stride 16, and at
        stride 8 after it.
    """

    stem: int
    middle: int
    context: int
    num_middle: int
    num_context: int
    num_mix: int


SIZES = {
    "nano": BackboneSize(
        stem=24, middle=48, context=64, num_middle=1, num_context=2, num_mix=1
    ),
    "small": BackboneSize(
        stem=32, middle=64, context=128, num_middle=1, num_context=3, num_mix=1
    ),
    "base": BackboneSize(
        stem=64, middle=128, context=192, num_middle=1, num_context=3, num_mix=1
    ),
}


def conv_block(channels_in: int, channels_out: int, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution with batch normalisation and ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


class Backbone(nn.Module):
    """Dense features at stride 8 and 16 of a grey image.

    Parameters
    ----------
    size : BackboneSize
        Widths and depths.
    """

    def __init__(self, size: BackboneSize) -> None:
        super().__init__()
        self.unshuffle = nn.PixelUnshuffle(4)
        self.stem = conv_block(16, size.stem)
        self.middle = nn.Sequential(
            conv_block(size.stem, size.middle, 2),
            *(conv_block(size.middle, size.middle) for _ in range(size.num_middle)),
        )
        self.context = nn.Sequential(
            conv_block(size.middle, size.context, 2),
            *(conv_block(size.context, size.context) for _ in range(size.num_context)),
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps at stride 8 and 16 of (N, 1, H, W) in [0, 1]."""
        middle = self.middle(self.stem(self.unshuffle(image)))
        return middle, self.context(middle)


class Trunk(nn.Module):
    """Dense descriptors: what the networks share, by names as well.

    Parameters
    ----------
    size : BackboneSize
        Of the backbone.
    dim : int
        Of the descriptors.
    """

    def __init__(self, size: BackboneSize, dim: int) -> None:
        super().__init__()
        self.backbone = Backbone(size)
        self.lift = nn.Conv2d(size.context, size.middle, 1)
        self.mix = nn.Sequential(
            *(conv_block(size.middle, size.middle) for _ in range(size.num_mix))
        )
        self.descriptors = nn.Conv2d(size.middle, dim, 1)

    def mixed(self, image: Tensor) -> Tensor:
        """Return what descriptors are made of, (N, middle, H / 8, W / 8)."""
        middle, context = self.backbone(image)
        lifted = functional.interpolate(
            self.lift(context), scale_factor=2.0, mode="bilinear", align_corners=False
        )
        mixed: Tensor = self.mix(middle + lifted)
        return mixed

    def describe(self, mixed: Tensor) -> Tensor:
        """Return descriptors, (N, dim, H / 8, W / 8), L2-normalised over channels."""
        return functional.normalize(self.descriptors(mixed), dim=1)


TRUNK = ("backbone.", "lift.", "mix.", "descriptors.")
"""What the names of a trunk's parameters begin with."""


class FeatureNet(Trunk):
    """Dense descriptors and their reliability; keypoints are corners of the image.

    Parameters
    ----------
    size : BackboneSize
        Of the backbone.
    dim : int
        Of the descriptors.
    """

    def __init__(self, size: BackboneSize, dim: int = 64) -> None:
        super().__init__(size, dim)
        self.reliability = nn.Conv2d(size.middle, 1, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return descriptors and reliability logits.

        Parameters
        ----------
        image : Tensor of shape (N, 1, H, W)
            Grey in [0, 1], sides multiples of `SIZE_MULTIPLE`.

        Returns
        -------
        descriptors : Tensor of shape (N, dim, H / 8, W / 8)
            L2-normalised over channels.
        reliability : Tensor of shape (N, 1, H / 8, W / 8)
            Whether the descriptor there finds its partner.
        """
        mixed = self.mixed(image)
        return self.describe(mixed), self.reliability(mixed)


class RetrievalNet(Trunk):
    """One global descriptor: local ones gathered by learned words [1]_, then projected.

    Parameters
    ----------
    size : BackboneSize
        Of the backbone.
    words : int
        Size of the vocabulary; one word more takes what is of no use.
    local_dim, dim : int
        Of the local and the global descriptor.

    References
    ----------
    .. [1] Arandjelovic et al., "NetVLAD", CVPR 2016, section 3.1; the word for what is
       of no use is the ghost cluster of Zhong et al., "GhostVLAD", ACCV 2018.
    """

    def __init__(
        self,
        size: BackboneSize,
        *,
        words: int = 32,
        local_dim: int = 64,
        dim: int = 256,
    ) -> None:
        super().__init__(size, local_dim)
        self.assign = nn.Conv2d(local_dim, words + 1, 1)
        self.centres = nn.Parameter(torch.zeros(words, local_dim))
        self.project = nn.Linear(words * local_dim, dim)

    def local(self, image: Tensor) -> Tensor:
        """Return local descriptors, (N, local_dim, H / 8, W / 8), L2-normalised."""
        return self.describe(self.mixed(image))

    def gather(self, local: Tensor) -> Tensor:
        """Return residuals by word, (N, words, local_dim), each L2-normalised."""
        weight = self.assign(local).softmax(1)[:, :-1].flatten(2)
        total = weight @ local.flatten(2).transpose(1, 2)
        residual = total - weight.sum(2, keepdim=True) * self.centres
        return functional.normalize(residual, dim=2)

    def forward(self, image: Tensor) -> Tensor:
        """Return global descriptors, (N, dim), L2-normalised, of (N, 1, H, W)."""
        gathered = self.gather(self.local(image))
        return functional.normalize(self.project(gathered.flatten(1)), dim=1)


def feature_net(size: str, dim: int = 64) -> FeatureNet:
    """Return an untrained feature network of a named size."""
    return FeatureNet(SIZES[size], dim)
