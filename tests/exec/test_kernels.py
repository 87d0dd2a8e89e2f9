from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sparseworks.core.errors import KernelError
from sparseworks.core.patterns import parse
from sparseworks.core.support import Support
from sparseworks.exec.format import FORMATS, Packed
from sparseworks.exec.kernel import KERNELS, Call
from sparseworks.exec.kernels import DenseKernel  # noqa: F401  registers formats and kernels
from sparseworks.exec.kernels.cpu import NativeKernel
from sparseworks.exec.native import features, native

NATIVE = [name for name, kernel in KERNELS.items() if isinstance(kernel, NativeKernel)]
FIXED_POINT = ("pairs-int16", "gemm-int8")
UNREAD_BITS = ("dense", "inmajor")
ROWS = [0, 1, 2, 5, 8, 12, 16, 63, 64, 65, 300]
SHAPES = [(1, 1), (37, 21), (64, 300), (300, 1033)]
needs_extension = pytest.mark.skipif(native() is None, reason="the compiled extension is not built")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def support_for(name: str, out: int, width: int, density: float = 0.3, seed: int = 0) -> Support:
    """A random support that the kernel's format admits."""
    generator = torch.Generator().manual_seed(seed)
    kind = KERNELS.get(name).format
    if kind == "panel":
        height = (16, 8, 4)[seed % 3]
        rows = torch.rand(-(-out // height), width, generator=generator) < density
        return Support.from_mask(rows.repeat_interleave(height, dim=0)[:out])
    if kind == "fanin":
        return Support.from_mask(torch.rand(out, width, generator=generator).argsort(dim=1) < round(density * width))
    if kind == "pairs":
        pairs = torch.rand(out, -(-width // 2), generator=generator) < density
        return Support.from_mask(pairs.repeat_interleave(2, dim=1))
    if kind == "balanced":
        groups = torch.rand(out, -(-width // 256), 256, generator=generator)
        groups.flatten(1)[:, width:] = -1.0  # never among the kept ones
        kept = max(0, min(round(density * 256), (width - 1) % 256 + 1))
        return Support.from_mask((groups.argsort(dim=-1, descending=True).argsort(dim=-1) < kept).flatten(1)[:, :width])
    if kind == "nmg":  # the shape is rounded up to whole chunks and blocks
        g = (1, 4, 43)[seed % 3]
        scores = torch.rand(-(-out // (6 * g)) * 6 * g, -(-width // 4) * 4, generator=generator)
        return parse(f"2:4:{g}").select(scores)
    if kind == "groups4":
        runs = torch.rand(out, -(-width // 16), generator=generator) < density
        return Support.from_mask(runs.repeat_interleave(16, dim=1))
    if kind == "nm":
        groups = torch.rand(out, -(-width // 4), 4, generator=generator).argsort(dim=-1) < 2
        return Support.from_mask(groups.reshape(out, -1))
    return Support.from_mask(torch.rand(out, width, generator=generator) < density)


def packed_for(name: str, support: Support, seed: int = 0) -> Packed:
    weight = torch.randn(*support.shape, generator=torch.Generator().manual_seed(seed))
    weight = weight.where(support.mask(), torch.tensor(float("nan")))
    return FORMATS.get(KERNELS.get(name).format).pack(weight, support, dtype=KERNELS.get(name).value_dtype)


def check(name: str, packed: Packed, rows: int, bias: bool = True) -> None:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, packed.shape[1], generator=generator)
    b = torch.randn(packed.shape[0], generator=generator) if bias else None
    kernel = KERNELS.get(name)
    torch.testing.assert_close(kernel(x, packed, b), kernel.reference(x, packed, b), rtol=1e-5, atol=1e-4)


@needs_extension
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NATIVE)
def test_equals_reference(name, shape, every_isa):
    for seed in range(3 if name.startswith(("panel", "nmg")) else 1):
        packed = packed_for(name, support_for(name, *shape, seed=seed))
        for rows in ROWS:
            check(name, packed, rows, bias=rows % 2 == 0)


@needs_extension
@pytest.mark.parametrize("name", NATIVE)
def test_numbers_of_tokens_around_every_tile(name, every_isa):
    """A tile is cut into as many vectors as the instruction set needs: each number of tokens takes another way through it."""
    packed = packed_for(name, support_for(name, 19, 70, seed=1))
    for rows in (3, 4, 6, 7, 9, 13, 17, 24, 25, 31, 32, 33, 47, 48, 49):
        if KERNELS.get(name).refuses(Call(rows, packed.shape, 0.3)) is None:
            check(name, packed, rows)


@needs_extension
@pytest.mark.parametrize("name", NATIVE)
def test_packing_does_not_depend_on_the_instruction_set(name, running):
    """What is stored is read by every machine."""
    support = support_for(name, 37, 301)
    first, *others = [pack_on(isa, name, support, running) for isa in features()["built"]]
    assert all(o.meta == first.meta and o.parts.keys() == first.parts.keys() for o in others)
    assert all(torch.equal(o.parts[part], first.parts[part]) for o in others for part in first.parts)


def pack_on(isa: str, name: str, support: Support, running) -> Packed:
    with running(isa):
        return packed_for(name, support)


@needs_extension
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("name", NATIVE)
def test_threads_equal_reference(name, threads, every_isa):
    torch.set_num_threads(threads)
    packed = packed_for(name, support_for(name, 520, 260))
    for rows in (1, 12, 130):
        check(name, packed, rows)


@needs_extension
@pytest.mark.parametrize("density", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("name", [n for n in NATIVE if not n.startswith("nm")])
def test_empty_and_full(name, density, every_isa):
    for shape in [(40, 300), (17, 9)]:
        packed = packed_for(name, support_for(name, *shape, density=density))
        for rows in (1, 4, 70):
            check(name, packed, rows)


@needs_extension
@pytest.mark.parametrize("name", NATIVE)
def test_inputs_outside_the_matrix_are_never_read(name, every_isa):
    """The rows of x lie in a buffer of NaN; a read beyond a row's end, even times zero, would show."""
    packed = packed_for(name, support_for(name, 24, 44))
    for rows in (1, 3, 9, 65):
        buffer = torch.full((rows * packed.shape[1] + 64,), float("nan"))
        x = buffer[: rows * packed.shape[1]].view(rows, -1)
        x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
        assert torch.isfinite(KERNELS.get(name)(x, packed, None)).all()


@needs_extension
@pytest.mark.parametrize("name", NATIVE)
def test_refusals_are_sentences(name):
    kernel, call = KERNELS.get(name), Call(4, (8, 8), 0.5)
    assert kernel.refuses(call) is None
    assert "cuda" in (kernel.refuses(Call(4, (8, 8), 0.5, device="cuda")) or "")
    assert "bfloat16" in (kernel.refuses(Call(4, (8, 8), 0.5, dtype=torch.bfloat16)) or "")


@needs_extension
@pytest.mark.parametrize("name", NATIVE)
def test_wrong_inputs_raise(name):
    packed = packed_for(name, support_for(name, 16, 32))
    kernel = KERNELS.get(name)
    for x, bias in [
        (torch.zeros(2, 31), None),
        (torch.zeros(32), None),
        (torch.zeros(2, 32, dtype=torch.float64), None),
        (torch.zeros(32, 2).T, None),
        (torch.zeros(2, 32), torch.zeros(15)),
        (torch.zeros(2, 32), torch.zeros(16, dtype=torch.bfloat16)),
    ]:
        with pytest.raises(KernelError, match="takes a contiguous float32"):
            kernel(x, packed, bias)
    other = "csr16" if kernel.format != "csr16" else "tile"
    with pytest.raises(KernelError, match="reads"):
        kernel(torch.zeros(2, 32), Packed(other, packed.shape, packed.dtype, packed.parts, packed.meta), None)


def damages(packed: Packed):
    """The form with one buffer cut short, of another type, or holding values out of range, one at a time."""
    for name, t in packed.parts.items():
        if name == "bits" and packed.format in UNREAD_BITS:
            continue
        flat = t.reshape(-1)
        yield {**packed.parts, name: flat[:-1].clone()}
        yield {**packed.parts, name: t.double()}
        if name in ("ptr", "starts", "columns") or (name == "bits" and packed.format not in UNREAD_BITS):
            wild = t.clone()
            wild.view(-1)[wild.numel() // 2] = (
                1 << 30 if t.dtype is torch.int32 else -1 if t.dtype is torch.int16 else 255
            )
            yield {**packed.parts, name: wild}
    yield {name: t for name, t in packed.parts.items() if name not in ("values", "weight", "codes")}


@needs_extension
@pytest.mark.parametrize("name", NATIVE)
def test_damaged_buffers_raise(name):
    packed = packed_for(name, support_for(name, 16, 40))
    kernel, x = KERNELS.get(name), torch.zeros(3, packed.shape[1])
    for parts in damages(packed):
        with pytest.raises(KernelError, match="damaged"):
            kernel(x, Packed(packed.format, packed.shape, packed.dtype, parts, packed.meta), None)


@needs_extension
@pytest.mark.parametrize("width", [4096, 4112, 16 * 300])
def test_runs_are_numbered_in_one_byte_or_two(width, every_isa):
    """256 runs of a row still fit one byte."""
    packed = packed_for("groups4-int4", support_for("groups4-int4", 5, width))
    assert packed.parts["columns"].dtype is (torch.uint8 if width <= 4096 else torch.int16)
    check("groups4-int4", packed, 7)


@needs_extension
def test_a_write_into_a_checked_buffer_is_noticed():
    packed = packed_for("csr16-fp32", support_for("csr16-fp32", 16, 40))
    kernel, x = KERNELS.get("csr16-fp32"), torch.randn(1, 40)
    kernel(x, packed, None)
    packed.parts["columns"][0] = 4000
    with pytest.raises(KernelError, match="damaged"):
        kernel(x, packed, None)


@needs_extension
def test_works_on_inference_tensors():
    with torch.inference_mode():
        packed = packed_for("tile-fp32", support_for("tile-fp32", 16, 40))
        check("tile-fp32", packed, 5)


def test_dense_is_linear_on_the_masked_weight():
    support = support_for("dense", 12, 20)
    x, bias = torch.randn(3, 20), torch.randn(12)
    for name, dtype in (("dense", torch.float32), ("dense-bf16", torch.bfloat16)):
        packed = packed_for(name, support)
        weight = FORMATS.get("dense").unpack(packed)[0]
        y = KERNELS.get(name)(x.to(dtype), packed, bias.to(dtype))
        assert torch.equal(y, F.linear(x.to(dtype), weight, bias.to(dtype)))
        assert KERNELS.get(name).refuses(Call(3, (12, 20), dtype=torch.float64))


def test_every_kernel_names_its_format_and_type():
    for name, kernel in KERNELS.items():
        assert kernel.name == name and kernel.format in FORMATS
        assert kernel.value_dtype in FORMATS.get(kernel.format).dtypes
    assert {k.format for k in KERNELS} == set(FORMATS.names())


@needs_extension
@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("rows", [1, 12, 65])
def test_kernels_compute_by_themselves(name: str, rows: int, monkeypatch, every_isa):
    """A kernel that fell back to its reference, to an unpacked weight or to a dense product would equal it in every grid."""
    kernel = KERNELS.get(name)
    mask = torch.zeros(32, 64, dtype=torch.bool)
    mask[:, ::4] = mask[:, 1::4] = True
    support, weight, x = Support.from_mask(mask), torch.randn(32, 64), torch.randn(rows, 64)
    if kernel.format == "nmg":
        support = parse("1:4:2").select(weight.abs())
    if kernel.format == "groups4":
        support = support_for(name, 32, 64)
    packed = FORMATS.get(kernel.format).pack(weight, support, dtype=kernel.value_dtype)
    expected = kernel.reference(x, packed, None)

    def forbidden(*_, **__):
        raise AssertionError(f"{name} does not multiply with the packed form")

    monkeypatch.setattr(type(kernel), "reference", forbidden)
    monkeypatch.setattr(type(FORMATS.get(kernel.format)), "unpack", forbidden)
    monkeypatch.setattr(F, "linear", forbidden)
    assert kernel.refuses(Call(min(rows, 8), (32, 64), support.density)) is None
    torch.testing.assert_close(kernel(x, packed, None), expected, rtol=2e-5, atol=2e-5)


@needs_extension
@pytest.mark.parametrize("name", FIXED_POINT)
@pytest.mark.parametrize("rows", [3, 65])
def test_rows_that_are_not_finite_give_nan_and_nothing_else(rows: int, name, every_isa):
    kernel, packed = KERNELS.get(name), packed_for(name, support_for(name, 40, 70))
    x, bias = torch.randn(rows, 70), torch.randn(40)
    clean = kernel(x, packed, bias)
    x[0, 3], x[2, 69] = float("inf"), float("nan")
    y = kernel(x, packed, bias)
    assert bool(y[[0, 2]].isnan().all())
    kept = [i for i in range(rows) if i not in (0, 2)]
    assert torch.equal(y[kept], clean[kept])


@needs_extension
@pytest.mark.parametrize("name", FIXED_POINT)
def test_fixed_point_takes_rows_of_any_size(name, every_isa):
    """Rows are scaled one by one: each is as precise as any other, zeros and what is next to nothing give the bias."""
    kernel, packed = KERNELS.get(name), packed_for(name, support_for(name, 24, 64))
    x, bias = torch.randn(1, 64), torch.randn(24)
    sizes = torch.tensor([1.0, 1e-20, 1e20, 0.0, 1e-33, 1e-40])[:, None]
    y = kernel(x * sizes, packed, None)
    torch.testing.assert_close(y[1:3] / sizes[1:3], y[:1].expand(2, 24), rtol=1e-5, atol=1e-5)
    assert torch.equal(kernel(x * sizes, packed, bias)[3:], bias.expand(3, 24))


@needs_extension
@pytest.mark.parametrize("shape", [(64, 384), (32, 1536)])
def test_pairs_are_closer_to_float32_than_bfloat16_values(shape):
    support = support_for("pairs-int16", *shape, density=0.45)
    weight, x = torch.randn(shape), torch.randn(64, shape[1])
    exact = F.linear(x.double(), (weight * support.mask()).double())

    def error(name: str) -> float:
        kernel = KERNELS.get(name)
        packed = FORMATS.get(kernel.format).pack(weight, support, dtype=kernel.value_dtype)
        return float((kernel(x, packed, None).double() - exact).norm() / exact.norm())

    assert 1e-5 < error("pairs-int16") < 6e-4 < error("tile-bf16")


@needs_extension
@pytest.mark.parametrize("name", [n for n in NATIVE if n.startswith(("gemv", "inbits", "inmajor"))])
def test_few_rows_only(name):
    assert KERNELS.get(name).refuses(Call(8, (8, 8))) is None
    assert "8 rows, not 9" in (KERNELS.get(name).refuses(Call(9, (8, 8))) or "")


@needs_extension
@pytest.mark.parametrize("threads", [1, 2])
def test_int8_sums_fill_32_bits_and_no_more(threads, every_isa):
    """Every weight and input at its largest, over several blocks of inputs: 845 levels of x are left, and the sums are exact."""
    torch.set_num_threads(threads)
    weight, x = (
        torch.full((13, 20000), -3.0),
        torch.ones(7, 20000) * torch.tensor([1.0, -1.0, 2, 5, -7, 0, 1e-9])[:, None],
    )
    packed = FORMATS.get("dense").pack(weight, Support.full((13, 20000)), dtype=torch.int8)
    y = KERNELS.get("gemm-int8")(x, packed, None)
    torch.testing.assert_close(y, F.linear(x.double(), weight.double()).float(), rtol=1e-6, atol=0.0)


@needs_extension
def test_int8_loses_to_the_rounding_of_weights_only():
    """Beside the product of the rounded weights with exact inputs it is off by less than 1e-4; torch's, which rounds both to 8 bits, by much more."""
    from sparseworks.exec.rivals import RIVALS, error

    weight, x = torch.randn(64, 2048), torch.randn(32, 2048)
    support = Support.full((64, 2048))
    packed = FORMATS.get("dense").pack(weight, support, dtype=torch.int8)
    stored, kernel = packed.unpack()[0], KERNELS.get("gemm-int8")
    assert 1e-6 < error(lambda x: kernel(x, packed, None), stored, x) < 1e-4
    whole = error(lambda x: kernel(x, packed, None), weight, x)
    assert whole < 0.6 * error(RIVALS.get("torch dense int8 (dynamic)").build(weight, support), weight, x)


def test_int8_values_are_as_close_as_a_level_of_their_row():
    weight = (
        torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1, 0, 1e3, 5, 2])[:, None]
    )
    for name, format in FORMATS.items():
        if torch.int8 in format.dtypes:
            back, _ = (
                format.unpack(format.pack(weight, Support.full((6, 40)), dtype=torch.int8))
                if name != "panel"
                else (format.rounded(weight, torch.int8), None)
            )
            level = weight.abs().amax(dim=1, keepdim=True) / 127
            assert bool(((back - weight).abs() <= level * 0.5001).all()) and not torch.equal(back, weight)
            with pytest.raises(KernelError, match="NaN"):
                format.pack(weight * float("nan"), Support.full((6, 40)), dtype=torch.int8)


@needs_extension
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", [n for n in NATIVE if n.startswith(("inbits", "inmajor"))])
def test_outputs_in_pieces(name, threads, every_isa):
    """Three pieces of 4096 outputs: in each an input goes on where its values ended in the last, or where a thread's outputs begin."""
    torch.set_num_threads(threads)
    packed = packed_for(name, support_for(name, 2 * 4096 + 71, 14))
    for rows in (1, 3):
        check(name, packed, rows)


@needs_extension
@pytest.mark.parametrize("name", [n for n in NATIVE if n.startswith(("inbits", "inmajor"))])
def test_skipped_inputs_are_not_read(name, every_isa):
    """A NaN weight of an input at the threshold does not reach y; one above it does."""
    kernel, support = KERNELS.get(name), Support.full((70, 21))
    weight, x = torch.randn(70, 21), torch.randn(3, 21)
    threshold = torch.tensor([0.0, 0.7, 9.0])
    x[:, 4] = threshold
    packed = FORMATS.get(kernel.format).pack(weight, support, dtype=kernel.value_dtype)
    expected = kernel.reference(x.where(x.abs() > threshold[:, None], 0.0), packed, None)
    if kernel.value_dtype.is_floating_point:
        stored = packed.parts["weight" if kernel.format == "inmajor" else "values"]
        stored.view(-1)[4 * 70 : 5 * 70] = float("nan")
        assert kernel(x[1:], packed, None).isnan().all()
    torch.testing.assert_close(kernel.skipping(x, packed, None, threshold), expected, rtol=1e-5, atol=1e-5)
    for wrong in (threshold[:2], threshold.double(), threshold[:, None]):
        with pytest.raises(KernelError, match="threshold per row"):
            kernel.skipping(x, packed, None, wrong)
