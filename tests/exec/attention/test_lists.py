"""The best places of a row, the limit of a weight, and attention over ranges of tokens, by every instruction set and in plain torch."""

import pytest
import torch

from sparseworks.core.errors import KernelError
from sparseworks.core.select import top
from sparseworks.exec.attention import attend_ranges, attend_tokens, best, cut


@pytest.mark.parametrize("n", [1, 7, 16, 100, 1000])
def test_the_best_are_those_of_a_sort(n, isa):
    draw = torch.Generator().manual_seed(n)
    scores = torch.randn(6, n, generator=draw).mul(4).round()  # many ties
    scores[1] = torch.randn(n, generator=draw)
    scores[2, ::3], scores[3, ::2], scores[4] = torch.inf, -torch.inf, 0.0
    scores[4, ::2] = -0.0
    keep = torch.randint(0, n + 1, (6,), generator=draw)
    ptr, idx = best(scores, keep)
    counts = torch.maximum(keep, (scores == torch.inf).sum(1)).minimum((scores > -torch.inf).sum(1))
    mask = top(scores, counts)
    assert torch.equal(ptr.diff().long(), counts)
    for row in range(6):
        assert idx[ptr[row] : ptr[row + 1]].tolist() == mask[row].nonzero()[:, 0].tolist()


def test_a_limit_is_reached_by_the_weight(isa):
    draw = torch.Generator().manual_seed(0)
    for n in (1, 5, 64, 333):
        scores, weight = torch.randn(n, generator=draw), torch.randint(0, 9, (n,), generator=draw)
        for keep in (1, int(weight.sum()) // 2, int(weight.sum())):
            if keep < 1 or keep > int(weight.sum()):
                continue
            limit = cut(scores, weight, keep)
            assert int(weight[scores >= limit].sum()) >= keep > int(weight[scores > limit].sum())
        assert cut(scores, weight, int(weight.sum()) + 1) == -torch.inf


@pytest.mark.parametrize("d", [32, 64, 96, 40])
def test_ranges_are_lists(d, isa):
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(h, n, d, generator=draw) for h, n in ((6, 3), (2, 300), (2, 300)))
    longer = [torch.cat([t, t], 1)[:, :300] for t in (k, v)]  # views of longer caches
    for begin, end in (([3, 100], [290, 100]), ([0, 7], [1, 300])):
        lists = [torch.arange(a, b) for a, b in zip(begin, end, strict=True)]
        ptr = torch.tensor([0, *(len(x) for x in lists)]).cumsum(0)
        expected = attend_tokens(q, k, v, ptr, torch.cat(lists))
        for keys, values in ((k, v), longer):
            found = attend_ranges(q, keys, values, torch.tensor(begin), torch.tensor(end))
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    with pytest.raises(KernelError, match="rise"):
        attend_ranges(q, k, v, torch.tensor([0, 5]), torch.tensor([10, 4]))
    with pytest.raises(KernelError, match="rise"):
        attend_ranges(q, k, v, torch.tensor([0, 5]), torch.tensor([10, 301]))
