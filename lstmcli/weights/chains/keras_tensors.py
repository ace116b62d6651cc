"""Which tensors of a Keras file are those of a layer that is no LSTM, in the order in which Keras lists its weights."""

from lstmcli.weights.containers.tensor import Tensor
from lstmcli.weights.keras_format.configuration import LayerRecord
from lstmcli.weights.keras_format.keras3_weights import CONTAINERS, counted_anew, weights_below
from lstmcli.weights.keras_format.stored_layers import Found

ORDER = ("kernel", "embeddings", "gamma", "alpha", "bias", "beta", "moving_mean", "moving_variance")


def tensors_of(found: Found, record: LayerRecord, tensors: list[Tensor]) -> list[Tensor]:
    """Return the weights of a layer, none where the file holds none of it."""
    if record.path in found.weights:
        return in_keras_order(found.weights[record.path])
    held = {tensor.name.replace("\\", "/"): tensor for tensor in tensors}
    if found.models:
        for member in (member for model in found.models for member in model):
            if member.name in (record.path[0], record.path[-1]):
                inside = [tensor for tensor in member.weights if f"/{record.path[-1]}/" in f"/{tensor.name}"]
                return in_keras_order(inside if len(record.path) > 1 else member.weights)
        return []
    ranks = counted_anew(held)
    place = ""
    for group in record.group:
        places = {
            "/".join(name.split("/")[: place.count("/") + 2])
            for name in held
            if name.startswith(place) and name[len(place) :].split("/")[0] in CONTAINERS
        }
        fitting = [each for each in sorted(places) if ranks.get(each, each.rpartition("/")[2]) == group]
        if len(fitting) != 1:
            return []
        place = f"{fitting[0]}/"
    return in_keras_order(weights_below(place.removesuffix("/"), held))


def in_keras_order(tensors: list[Tensor]) -> list[Tensor]:
    """By name where they have names; files of Keras 3 number them."""

    def place(tensor: Tensor) -> int:
        own = tensor.name.rpartition("/")[2].partition(":")[0]
        return int(own) if own.isdigit() else ORDER.index(own) if own in ORDER else len(ORDER)

    return sorted(tensors, key=place)
