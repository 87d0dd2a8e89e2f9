"""Methods that act while a model trains."""

from __future__ import annotations

from sparseworks.allocate import ERK
from sparseworks.core.budget import Density
from sparseworks.core.method import Source
from sparseworks.core.schedule import Constant, Cosine, Cubic
from sparseworks.scores import SNIP, Exploration, Gradient, Hebbian, Magnitude, Modular, Movement, Random, SignRank
from sparseworks.weights.methods.add import add
from sparseworks.weights.methods.oneshot import MOCANU, SANH
from sparseworks.weights.train.dropgrow import DropGrow
from sparseworks.weights.train.fanin import FanInDropGrow
from sparseworks.weights.train.feedback import Reconfigure
from sparseworks.weights.train.gradual import Gradual
from sparseworks.weights.train.granet import PruneRegrow
from sparseworks.weights.train.moving import Moving
from sparseworks.weights.train.popup import EdgePopup
from sparseworks.weights.train.readjust import ClientDropGrow

ZHU = Source("Zhu and Gupta", 2017, "1710.01878", "To prune, or not to prune")
EVCI = Source("Evci, Gale, Menick, Castro and Elsen", 2020, "1911.11134", "Rigging the lottery")
HUANG = Source("Huang, Lei, Xu, Peng, Sun, Xie and Ding", 2022, "2211.16667", "Exploration-exploitation trade-off")
LASBY = Source(
    "Lasby, Golubeva, Evci, Nica and Ioannou", 2023, "2305.02299", "Dynamic sparse training with structured sparsity"
)
KONSTANTAROPOULOS = Source(
    "Konstantaropoulos, Smyrnakis and Papadopouli", 2025, "2508.14140", "Ensemble-to-ensemble communication"
)
WANG = Source("Wang, Sui, Wu, Zheng and Xiong", 2024, "2402.02855", "Dynamic sparse learning")
LIU = Source("Liu, Chen, Chen, Atashgahi, Yin, Kou, Shen, Pechenizkiy, Wang and Mocanu", 2021, "2106.10404", "GraNet")
WU = Source(
    "Wu, Wen, Zhang, Xia, Liang, Zheng, Wen and Wang", 2024, "2403.02914", "Dynamic sparse training of input regions"
)
LONG = Source(
    "Long, Anagnostopoulos, Parambath and Bi",
    2023,
    "2309.06805",
    "FedDIP: extreme dynamic pruning and incremental regularization",
)
BIBIKAR = Source("Bibikar, Vikalo, Wang and Chen", 2021, "2112.09824", "Federated dynamic sparse training")
VINCENT = Source("Vincent, Faust, Tripathi, Peters and D'Eramo", 2025, "2503.01437", "Eau de Q-network")
MOUSAVI = Source(
    "Mousavi, Loni, Alibeigi and Daneshtalab",
    2023,
    "2207.06968",
    "Architecture search for sparse neural networks (DASS)",
)
RAMANUJAN = Source(
    "Ramanujan, Wortsman, Kembhavi, Farhadi and Rastegari", 2020, "1911.13299", "What's hidden in a random network?"
)
THANGARASA = Source("Thangarasa, Saxena, Gupta and Lie", 2023, "2303.11525", "Sparse iso-FLOP transformations")

add(
    "gmp", Magnitude(), "tensor", ZHU, "Gradual magnitude pruning: fast first, slow at the end.",
    schedule=Cubic(), train=Gradual(),
    when="Training starts dense and may cost what dense training costs: the baseline of gradual pruning.",
    when_not="Training itself has to be cheap in memory or time: weights are dense for most of it.",
)  # fmt: skip
add(
    "movement_pruning", Movement(), "tensor", SANH, "Gradual pruning while a model is fine-tuned: kept is what grows, whatever its size.",
    schedule=Cubic(), train=Moving(),
    when="A pre-trained model is fine-tuned to another task, with steps so small that large weights stay large, and few weights shall stay.",
    when_not="Training starts from scratch or with large steps: magnitude is as good and needs no gradients of dropped weights.",
)  # fmt: skip
add(
    "set", SignRank(), "tensor", MOCANU,
    "Sparse from the start; drops the smallest positive and the largest negative, grows at random.",
    allocate=ERK(), schedule=Constant(0.3), train=DropGrow(grow=Random()),
    when="Training has a fixed number of weights and never sees a dense gradient; `Rewire` then stores the kept ones only.",
    when_not="A dense gradient now and then is affordable: growth by gradient pays more than growth by chance.",
)  # fmt: skip
add(
    "rigl", Magnitude(), "tensor", EVCI, "Sparse from the start; drops the smallest, grows where the gradient is largest.",
    allocate=ERK(), schedule=Cosine(0.3), train=DropGrow(),
    when="Training has a fixed number of weights from the start, and a dense gradient every hundred steps is affordable.",
    when_not="No dense gradient fits into memory: use SET, or `Rewire`, which samples candidates.",
)  # fmt: skip
add(
    "sparse_ift", Magnitude(), "tensor", THANGARASA,
    "RigL on layers that `isoflop` made larger: more accurate than dense at the same cost.",
    budget=Density(0.25), schedule=Cosine(0.3), train=DropGrow(rescale=True), catalog=(33,),
    when="The cost of inference is given, and a larger sparse layer shall make more of it than a dense one.",
    when_not="Kernels do not turn zeros into time: equal FLOPs are then not equal time.",
)  # fmt: skip
add(
    "dst_ee", Magnitude(), "tensor", HUANG, "RigL whose growth also favours what was seldom tried: more of the weights take part.",
    allocate=ERK(), schedule=Cosine(0.3), train=DropGrow(grow=Gradient() + 1e-4 * Exploration()), catalog=(87,),
    when="As RigL at 95 % sparsity and more, where supports settle before most weights were tried.",
    when_not="The factor of the bonus cannot be tuned: it has to fit the size of the gradients.",
)  # fmt: skip
add(
    "srigl", Magnitude(), "live-fan-in", LASBY, "RigL with equally many inputs a living neuron, which runs fast; weak neurons die.",
    allocate=ERK(), schedule=Cosine(0.3), train=FanInDropGrow(rescale=True), catalog=(80,), status="experimental",
    when="Rows shall hold equally many weights, for condensed kernels at small batches, at 90 % sparsity and more. A ResNet-20 with 6000 images of CIFAR-10 "
    "and 20 epochs came to 57.6 % at 95 % sparsity, RigL to 58.4 (three seeds, deviations 1.7 and 1.1).",
    when_not="Accuracy of a perceptron counts: RigL stays ahead (Fashion-MNIST, 95 %: 80.6 to 79.8; digits 93.5 to 89.6). Or a gain is expected of the default "
    "ablation: that ResNet came to 57.8 % without it, and at 99 % to 48.9 against 47.0. With few inputs a neuron take `ablate=0.95`.",
)  # fmt: skip
add(
    "g2g", Modular(), "tensor", KONSTANTAROPOULOS, "Matched groups of neurons dense, the rest at random: held while training.",
    catalog=(156,),
    when="Inputs come in groups that act together, in their order, as pixels do, and a sparse start is wanted that costs no data: on Fashion-MNIST at "
    "25 % 83.8 % are right, with entries at random 83.5 (five seeds, better in each; dense 84.1).",
    when_not="Inputs have no such order (digits, 25 %: 0.937, at random 0.942; 10 %: 0.19 and 0.48), or the widths are free: a dense network with a "
    "quarter of the units has fewer weights and was as good (83.8).",
)  # fmt: skip
add(
    "g2gnet", Magnitude(), "tensor", KONSTANTAROPOULOS, "Starts from matched groups; grows between neurons that fire together.",
    schedule=Constant(0.3), train=DropGrow(grow=Hebbian(), first=Modular()), catalog=(156,), status="experimental",
    when="A perceptron is trained sparse on many inputs, some of which have common causes and others are noise. On Fashion-MNIST at 25 % 83.6 % are "
    "right, with growth at random from the same start 83.5, from a random one 83.3 (five seeds; RigL 83.5).",
    when_not="Few weights stay on images (digits, 5 %: 0.50, growth at random 0.60), or the support may be held: `g2g` was better there (83.8).",
)  # fmt: skip
add(
    "dsl", Magnitude(), "tensor", WANG, "Drop-and-grow on embedding tables and MLPs of recommenders, from scratch.",
    schedule=Cosine(0.5, end=0.005), train=DropGrow(stop=1.0), catalog=(29,),
    when="A recommender's embedding tables and perceptrons are trained from scratch in fixed memory. Recall@20 of LightGCN on 1000 people and items, half of "
    "its tables kept: 59.2 %, with growth at random 58.3, held at random 56.4, dense 60.1 (three seeds).",
    when_not="Recall may not fall and few entries may stay: at 30 % it was 55.4 (held at random 47.5). Tables are so wide that a random support does as well.",
)  # fmt: skip
add(
    "granet", Magnitude(), "global", LIU, "Dense or half dense at first; prunes gradually and regrows by gradient all the while.",
    schedule=Cosine(0.5), train=PruneRegrow(),
    when="Training may begin dense or half dense and has to end at high sparsity.",
    when_not="Memory is short from the first step: the early model is the dense one.",
)  # fmt: skip
add(
    "dynst", SNIP(), "tensor", WU, "Regions of the input, see `RegionGate`: the least |mask gradient| go, gradients bring some back.",
    schedule=Cosine(0.3), train=DropGrow(ramp=Cubic()), catalog=(98,),
    when="The input is a grid of sensors or regions, of which only a part shall be read.",
    when_not="Weights are to become sparse: the sites are gates of inputs, see `RegionGate`.",
)  # fmt: skip
add(
    "feddip", Magnitude(), "global", LONG,
    "Federated, see `Server`: clients train what is left out as well, the server chooses again every few rounds.",
    allocate=ERK(), schedule=Cubic(), train=Reconfigure(), catalog=(115,),
    when="Data lie with many clients, and what they send has to be small: on digits with ten clients 97.4 and 97.0 % at 90 and 95 % sparsity, RigL 96.9 "
    "and 96.4, FedDST 96.1 and 94.7 (three seeds, deviations 0.4 to 1.5).",
    when_not="All data are in one place: `gmp` and `rigl` need no rounds. Of its penalty no gain was seen: without it 97.3 and 97.2 %.",
)  # fmt: skip
add(
    "feddst", Magnitude(), "tensor", BIBIKAR,
    "Federated, see `Server`: clients drop and grow in their own supports, each entry is averaged over those that hold it.",
    allocate=ERK(), schedule=Cosine(0.3), train=ClientDropGrow(),
    when="Data lie with many clients, and neither they nor their messages may ever hold more than the sparse model, but for one gradient now and then.",
    when_not="Accuracy counts more than bytes: on digits with ten clients 96.1 and 94.7 % at 90 and 95 % sparsity, FedDIP 97.4 and 97.0 with three to five times the uploads.",
)  # fmt: skip
add(
    "eau_de_qn", Magnitude(), "global", VINCENT,
    "How an agent prunes at the pace at which it learns, see `PacedQNetworks`; its sparsity follows from its losses.",
    catalog=(82,), status="experimental",
    when="A deep Q-network is to become sparse, and nobody knows how sparse it may be: the return decides.",
    when_not="A density is given: it ends where the agent can still learn. In a small maze a wide network passed "
    "40 % with all that it had learned (in the test); on CartPole, 20,000 steps, at 55 % with returns of 94 ± 36, below a cubic ramp to 80 % with "
    "131 ± 191 (three seeds; dense 274 ± 192).",
)  # fmt: skip
add(
    "edge_popup", Magnitude(), "tensor", RAMANUJAN, "Weights stay as drawn; the subnetwork is learned.",
    train=EdgePopup(), catalog=(131,),
    when="A network is to be described by a seed and a mask.",
    when_not="Accuracy at a density counts: its weights never learn.",
)  # fmt: skip
add(
    "dass", Magnitude(), "tensor", MOUSAVI, "Masks learned on trained weights; `search_sparse` chooses operations by the loss of the masked network.",
    train=EdgePopup(first=None), catalog=(27,), status="experimental",
    when="Operations of a cell are chosen for a network that will be sparse.",
    when_not="The architecture is fixed: there is nothing to search. On digits at 1 to 5 % it beat the dense search in 7 of 11 runs only.",
)  # fmt: skip
