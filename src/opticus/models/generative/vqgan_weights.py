"""Rename tables of the autoencoders of taming-transformers and latent diffusion, in the authors' layout and in that of diffusers."""

from __future__ import annotations

from torch import Tensor

from opticus.weights.names import Names, Rule, drop, flatten, join, rename


def _ldm_rules(prefix: str = "") -> tuple[Rule, ...]:
    """The authors' keys; their attention has separate 1x1 convolutions for query, key and value."""
    rules = [
        join(rf"{prefix}(.+attn(?:\.\d+|_1))\.{part}\.(weight|bias)", r"\1.qkv.\2", i, 3, op=flatten_kernel)
        for i, part in enumerate("qkv")
    ]
    return (
        *rules,
        rename(rf"{prefix}(.+attn(?:\.\d+|_1)\.proj_out\.(?:weight|bias))", r"\1", flatten_kernel),
        rename(rf"{prefix}((?:encoder|decoder|quantize|quant_conv|post_quant_conv)\..+)", r"\1"),
    )


def flatten_kernel(tensor: Tensor) -> Tensor:
    """A 1x1 kernel (out, in, 1, 1) as a matrix; matrices and biases as they are."""
    return flatten(1)(tensor) if tensor.ndim > 1 else tensor


def ldm(prefix: str = "", others: str = r"(?:loss|model_ema)\..+") -> Names:
    """The layout of taming-transformers and latent-diffusion; keys that match `others` belong to the training."""
    return Names(drop(others), *_ldm_rules(prefix))


def diffusers(levels: int) -> Names:
    """The layout of diffusers for so many levels: its decoder counts them from the coarsest one. Old files name attention differently."""
    rules: list[Rule] = []
    attention = ("(?:to_q|query)", "(?:to_k|key)", "(?:to_v|value)")
    for side, blocks, level in (("encoder", "down", r"\2"), ("decoder", "up", None)):
        for i in range(levels):
            here = rf"({side})\.{blocks}_blocks\.({i})"
            there = rf"\1.{blocks}.{level if level else levels - 1 - i}"
            rules += [
                join(rf"{here}\.attentions\.(\d+)\.{part}\.(weight|bias)", rf"{there}.attn.\3.qkv.\4", j, 3, op=flatten_kernel)
                for j, part in enumerate(attention)
            ]
            rules += [
                rename(rf"{here}\.attentions\.(\d+)\.group_norm\.(.+)", rf"{there}.attn.\3.norm.\4"),
                rename(
                    rf"{here}\.attentions\.(\d+)\.(?:to_out\.0|proj_attn)\.(.+)", rf"{there}.attn.\3.proj_out.\4", flatten_kernel
                ),
                rename(rf"{here}\.resnets\.(\d+)\.conv_shortcut\.(.+)", rf"{there}.block.\3.nin_shortcut.\4"),
                rename(rf"{here}\.resnets\.(\d+)\.(.+)", rf"{there}.block.\3.\4"),
                rename(rf"{here}\.{blocks}samplers\.0\.(.+)", rf"{there}.{blocks}sample.\3"),
            ]
    middle = r"(encoder|decoder)\.mid_block"
    rules += [
        join(rf"{middle}\.attentions\.0\.{part}\.(weight|bias)", r"\1.mid.attn_1.qkv.\2", j, 3, op=flatten_kernel)
        for j, part in enumerate(attention)
    ]
    rules += [
        rename(rf"{middle}\.attentions\.0\.group_norm\.(.+)", r"\1.mid.attn_1.norm.\2"),
        rename(rf"{middle}\.attentions\.0\.(?:to_out\.0|proj_attn)\.(.+)", r"\1.mid.attn_1.proj_out.\2", flatten_kernel),
        rename(rf"{middle}\.resnets\.0\.(.+)", r"\1.mid.block_1.\2"),
        rename(rf"{middle}\.resnets\.1\.(.+)", r"\1.mid.block_2.\2"),
        rename(r"(encoder|decoder)\.conv_norm_out\.(.+)", r"\1.norm_out.\2"),
        rename(r"((?:encoder|decoder)\.conv_(?:in|out)|quant_conv|post_quant_conv|quantize)\.(.+)", r"\1.\2"),
    ]
    return Names(*rules)


TRAINING = Names(  # the authors' whole training state but their perceptual network
    drop(r"loss\.(?:perceptual_loss\..+|logvar)"),
    rename(r"loss\.discriminator\.(.+)", r"discriminator.\1"),
    *(Rule(rule.pattern, f"network.{rule.to}", rule.op, rule.piece) for rule in _ldm_rules()),
)
