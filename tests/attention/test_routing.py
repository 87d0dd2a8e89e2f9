"""Routing by clusters: balanced, exact inside, averaged outside, and holding far more mass than its share."""

import pytest
import torch

import sparseworks as sw
from sparseworks.attention.masks import Band
from sparseworks.attention.routing import RoutingAttention, balanced, pairs, routed
from sparseworks.core.errors import BudgetError
from sparseworks.evaluate.sequences import mass_recall, qkv
from sparseworks.exec.attention.reference import softmax_attend


def test_attention_inside_clusters_is_that_of_a_loop(assert_close):
    g = torch.Generator().manual_seed(0)
    x, v = (torch.randn(2, 3, 20, 8, generator=g) for _ in range(2))
    places = balanced(x, torch.randn(3, 4, 8, generator=g), 6)
    out = routed(x, v, places)
    for b, h in ((0, 0), (1, 2)):
        total, count = torch.zeros(20, 8), torch.zeros(20)
        for cluster in places[b, h].tolist():
            assert cluster == sorted(cluster)
            for rank, i in enumerate(cluster):
                keys = cluster[:rank] or [i]
                weight = (x[b, h, keys] @ x[b, h, i] * 8**-0.5).softmax(0)
                total[i] += weight @ v[b, h, keys]
                count[i] += 1
        assert_close(out[b, h], total / count.clamp(min=1).unsqueeze(-1))
        assert bool((count == 0).any()) and not bool(out[b, h][count == 0].any())


def test_clusters_hold_far_more_mass_than_their_share_and_random_ones_do_not():
    drawn = qkv(512, heads=2, clusters=12, spread=0.3, shared=0.8, seed=0)
    module = RoutingAttention(2, 64, 12, decay=0.5)
    torch.manual_seed(0)
    x = torch.nn.functional.layer_norm(drawn.k, (64,))
    module.centres.copy_(x[:, :, torch.randperm(512)[:12]][0])
    for _ in range(20):
        module.follow(x)
    learned = pairs(balanced(x, module.centres, 512 // 12), 512)
    randomly = pairs(balanced(x, torch.randn(2, 12, 64), 512 // 12), 512)
    shuffled = learned[..., torch.randperm(512)]
    recall = lambda kept: float(mass_recall(drawn.q, drawn.k, kept).mean() / kept.float().mean())  # noqa: E731
    assert recall(learned) > 4 and recall(learned) > 1.3 * recall(randomly) and recall(shuffled) < 1.5


def test_centroids_follow_only_in_training_and_by_their_decay(assert_close):
    torch.manual_seed(0)
    module = RoutingAttention(2, 8, 4, decay=0.9)
    x, v, before = torch.randn(1, 2, 32, 8), torch.randn(1, 2, 32, 8), module.centres.clone()
    module.eval()(x, v)
    assert torch.equal(module.centres, before)
    module.train()(x, v)
    normal = torch.nn.functional.layer_norm(x, (8,))
    label = (normal @ before.mT).argmax(-1)
    for h in range(2):
        for c in range(4):
            mine = normal[0, h][label[0, h] == c]
            assert_close(module.centres[h, c], 0.9 * before[h, c] + 0.1 * mine.mean(0) if len(mine) else before[h, c])
    with pytest.raises(BudgetError, match="cluster"):
        RoutingAttention(2, 8, 0)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_method_holds_more_mass_than_a_window_at_equal_density(heads_of, call, seed):
    heads = heads_of(qkv(512, heads=2, clusters=12, spread=0.3, shared=0.8, rho=0.5, seed=seed), causal=False)
    seen = call(sw.method("routing_transformer", always=None), heads)
    routing = sw.method("routing_transformer")
    window = call(routing.with_(score=None, always=Band(round(256 * seen.density) + 1)), heads)
    assert window.density >= seen.density > 0
    assert seen.mass > 2 * window.mass


class Recall(torch.nn.Module):
    """Every token has a key and a value; the value is to be told from earlier tokens of the same key."""

    def __init__(self, second: str, keys=24, values=8, d=32, clusters=8):
        super().__init__()
        self.second, self.width = second, 16
        self.key, self.value = torch.nn.Embedding(keys, d), torch.nn.Embedding(values, d)
        self.routing = RoutingAttention(1, d, clusters, decay=0.9)
        self.out = torch.nn.Linear(2 * d, values)

    def local(self, x, v, near, far):
        apart = torch.arange(x.shape[2])[:, None] - torch.arange(x.shape[2])
        mask = ((apart >= near) & (apart < far)) | ((apart == 0) & (torch.arange(x.shape[2]) == 0))
        return softmax_attend(x, x, v, mask, x.shape[-1] ** -0.5)[0]

    def forward(self, keys, values):
        x, v = self.key(keys)[:, None], self.value(values)[:, None]
        normal = torch.nn.functional.layer_norm(x, x.shape[-1:])
        first = self.local(normal, v, 1, 1 + self.width)
        if self.second == "routing":
            other = self.routing(x, v)
        elif self.second == "random":
            places = torch.rand(len(x), 1, 8, x.shape[2]).topk(16, -1).indices.sort(-1).values
            other = routed(normal, v, places)
        else:
            other = self.local(normal, v, 1 + self.width, 1 + 2 * self.width)
        return self.out(torch.cat([first, other], -1)[:, 0])


def test_local_and_routing_learn_what_local_alone_and_random_clusters_do_not():
    losses = {}
    for second in ("routing", "local", "random"):
        torch.manual_seed(0)
        model, seen = Recall(second), []
        optimizer = torch.optim.Adam(model.parameters(), 2e-2)
        for _ in range(90):
            keys, table = torch.randint(24, (8, 128)), torch.randint(8, (8, 24))
            values = table.gather(1, keys)
            logits = model(keys, values)[:, 48:]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), values[:, 48:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(float(loss.detach()))
        losses[second] = sum(seen[-10:]) / 10
    assert losses["routing"] < 0.7 * min(losses["local"], losses["random"])
