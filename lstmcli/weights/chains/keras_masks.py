"""Masks of Keras: which layers heed them, and what stands at the steps that they hide where a layer does not."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from lstmcli.errors import DataError, shown
from lstmcli.model.layers import Embedding, Flatten, Flip, Layer, Masking, Pool, Unmask, Window
from lstmcli.model.tree import Bidirectional, Model


class Named(NamedTuple):
    """Layers of a chain that come of one layer of Keras, of the class `kind`."""

    name: str
    kind: str
    layers: list[Layer | Model]


def with_masks_as_heeded(made: list[Named], fills: Mapping[Any, str]) -> list[Named]:
    """Return the layers with their masks as far as Keras heeds them. Raises DataError where it heeds them in another way.

    A layer that looks at several steps lets no mask through, nor does a Reshape or another Masking. At hidden steps it sees
    what the last LSTM put there (`fills`, see Unmask), or where there is none the zeros of a Masking.
    """
    mask: Layer | None = None
    lstm: Model | None = None
    turned = ""  # the layer that turned the steps, but not their mask
    upon: dict[Any, Unmask] = {}
    ignored: list[Layer] = []
    for named in made:
        if mask and named.kind == "Softmax":
            raise DataError(f"layer {shown(named.name)}: takes the mask of the steps for one of the features; not known")
        made_of_it: list[Layer | Model | None] = [*named.layers] or [None]
        for layer in made_of_it:
            masking = layer if isinstance(layer, Masking) or (isinstance(layer, Embedding) and layer.mask_zero) else None
            over_steps = isinstance(layer, Window | Flatten) or (isinstance(layer, Pool) and layer.function == "max")
            if mask and (masking or over_steps or named.kind == "Reshape"):
                if lstm:
                    upon[lstm] = Unmask(fills[lstm])
                elif isinstance(mask, Masking) and mask.value:
                    upon[mask] = Unmask("zeros")
                else:
                    ignored.append(mask)
                mask = None
            if masking:
                mask, lstm, turned = masking, None, ""
            elif mask and isinstance(layer, Flip):
                turned = named.name
            elif mask and isinstance(layer, Model):
                refuse_turned(turned)
                lstm = layer
            elif mask and isinstance(layer, Pool):
                refuse_turned(turned)
                if layer.function == "final" and fills[lstm] == "zeros" and not isinstance(lstm, Bidirectional):
                    raise DataError(f"layer {shown(named.name)}: zero_output_for_mask without return_sequences is not known")
                mask = None
    if mask:
        refuse_turned(turned)

    def layers(named: Named) -> Iterator[Layer | Model]:
        for layer in named.layers:
            if layer not in ignored:
                yield layer
            elif isinstance(layer, Embedding):
                yield Embedding(layer.table)
            if layer in upon:
                yield upon[layer]

    return [named._replace(layers=list(layers(named))) for named in made]


def refuse_turned(name: str) -> None:
    if name:
        raise DataError(
            f"layer {shown(name)}: go_backwards with return_sequences turns the steps, but not their mask, which then hides "
            "others; not known to this program"
        )
