"""Rules of the operators that change no place along an axis, or take whole axes at once."""

from reconv.costing.receptive.call import Call, Rules
from reconv.costing.receptive.combine import everywhere, hull, matmul, mix
from reconv.costing.receptive.field import Field
from reconv.costing.receptive.taps import LostError

ELEMENTS = Rules()


@ELEMENTS.rule("hardswish masked_fill _to_copy alias detach lift_fresh lift native_dropout dropout _prelu_kernel where")
@ELEMENTS.rule("rrelu_with_noise log_sigmoid_forward polar complex floor_divide _conj contiguous")
def elementwise(call: Call) -> Field:
    return hull(call.fields()).expand(call.shape)


@ELEMENTS.rule("copy_")
def _copy(call: Call) -> Field:
    call.ignore("self")
    return call.field("src").expand(call.shape)


@ELEMENTS.rule("fill_ zero_ uniform_ normal_ bernoulli_ random_ exponential_ new_zeros new_ones new_empty new_full")
@ELEMENTS.rule("zeros_like ones_like empty_like full_like rand_like randn_like randint_like")
def _constant(call: Call) -> Field:
    call.ignore("self")
    return Field.of_constant(call.shape)


@ELEMENTS.rule("glu")
def _glu(call: Call) -> Field:
    field, dim = call.field(), call["dim"]
    half = call.shape[dim]
    return hull([field.slice(dim, start, 1, half) for start in (0, half)])


@ELEMENTS.rule("sum mean amax amin max min std var std_mean var_mean prod any all logsumexp linalg_vector_norm norm")
@ELEMENTS.rule("argmax argmin nansum nanmean count_nonzero")
def _reduction(call: Call) -> Field | list[Field]:
    field, dims = call.field(), call.get("dim")
    dims = [dims] if isinstance(dims, int) else dims or range(len(field.axes))
    field = field.reduce(dims)
    return [field if call.get("keepdim") else field.drop(dims)] * len(call.outputs)


@ELEMENTS.rule("_softmax _log_softmax _safe_softmax softmax log_softmax")
def _softmax(call: Call) -> Field:
    return mix(call.field(), [call["dim"]])


@ELEMENTS.rule("native_layer_norm _fused_rms_norm")
def _layer_norm(call: Call) -> Field:
    return mix(call.field("input"), range(-len(call["normalized_shape"]), 0))


@ELEMENTS.rule("native_group_norm")
def _group_norm(call: Call) -> Field:
    field, groups = call.field("input"), call["group"]
    batch, channels, *space = field.shape
    field = field.view((batch, groups, channels // groups, *space))
    return mix(field, range(2, len(field.axes))).view(call.shape)


@ELEMENTS.rule("native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm")
def _batch_norm(call: Call) -> Field:
    field = call.field("input")
    batch_statistics = bool(call.get("training"))
    return mix(field, [axis for axis in range(len(field.axes)) if axis != 1]) if batch_statistics else field


@ELEMENTS.rule("mm bmm matmul")
def _matmul(call: Call) -> Field:
    return matmul(call.field("self"), call.field("mat2", "other"))


@ELEMENTS.rule("addmm baddbmm")
def _addmm(call: Call) -> Field:
    return hull([call.field("self"), matmul(call.field("mat1", "batch1"), call.field("mat2", "batch2"))])


@ELEMENTS.rule("linear")
def _linear(call: Call) -> Field:
    return hull([call.field("input").reduce([-1]), *map(everywhere, call.fields("weight", "bias"))]).expand(call.shape)


@ELEMENTS.rule("_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention")
@ELEMENTS.rule("_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention")
def _attention(call: Call) -> Field:
    if call["is_causal"]:
        raise LostError("causal attention")
    tokens = [call.field(name).reduce([-2, -1]) for name in ("key", "value")]
    return hull([call.field("query").reduce([-1]), *tokens]).expand(call.shape)


@ELEMENTS.rule("embedding")
def _embedding(call: Call) -> Field:
    return call.field("indices").insert(-1).expand(call.shape)
