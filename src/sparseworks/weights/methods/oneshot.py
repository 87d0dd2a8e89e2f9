"""Methods that prune a finished model, or choose a support before training."""

from __future__ import annotations

from sparseworks.allocate import DLP, ERK, OWL, Balanced, ERKPlus, EvoPress, Global, Pyramidal, UniformPlus
from sparseworks.core.method import Source
from sparseworks.core.schedule import Rounds
from sparseworks.core.solver import Select
from sparseworks.repair import BiasCorrection, LeastSquares
from sparseworks.scores import OBS, SNIP, GraSP, InputNorm, Magnitude, Movement, Random, SynFlow, Taylor
from sparseworks.solve import ADMM, DSnoT, ObsSweep
from sparseworks.weights.methods.add import add

HAN = Source("Han, Pool, Tran and Dally", 2015, "1506.02626", "Learning both weights and connections")
SUN = Source("Sun, Liu, Bair and Kolter", 2023, "2306.11695", "A simple and effective pruning approach for LLMs")
FRANTAR = Source("Frantar and Alistarh", 2023, "2301.00774", "SparseGPT")
YIN = Source("Yin, Wu, Zhang et al.", 2023, "2310.05175", "Outlier weighed layerwise sparsity")
CHEN = Source("Chen et al.", 2025, "2505.23807", "Dynamic layerwise pruning")
ZHANG = Source("Zhang, Zhao, Lin et al.", 2023, "2310.08915", "Dynamic Sparse No Training")
SIEBERLING = Source("Sieberling, Kuznedelev, Kurtic and Alistarh", 2024, "2410.14649", "EvoPress")
ZENG = Source("Zeng et al.", 2024, "2412.17560", "GQSA")
BOZA = Source("Boža", 2024, "2401.02938", "Fast and effective weight update for pruned LLMs")
OBC = Source("Frantar and Alistarh", 2022, "2208.11580", "Optimal Brain Compression")
LEE = Source("Lee, Ajanthan and Torr", 2019, "1810.02340", "SNIP")
WANG = Source("Wang, Zhang and Grosse", 2020, "2002.07376", "GraSP")
TANAKA = Source("Tanaka, Kunin, Yamins and Ganguli", 2020, "2006.05467", "SynFlow")
MOLCHANOV = Source("Molchanov, Mallya, Tyree, Frosio and Kautz", 2019, "1906.10771", "Importance estimation")
SANH = Source("Sanh, Wolf and Rush", 2020, "2005.07683", "Movement pruning")
AN = Source("An, Zhao, Yu, Tang and Wang", 2023, "2312.11983", "FLAP")

MOCANU = Source("Mocanu, Mocanu, Stone, Nguyen, Gibescu and Liotta", 2018, "1707.04780", "Sparse evolutionary training")
LIU = Source("Liu, Chen, Chen, Shen, Mocanu, Wang and Pechenizkiy", 2022, "2202.02643", "Random pruning")
GADHIKAR = Source("Gadhikar, Mukherjee and Burkholz", 2023, "2210.02412", "Why random pruning is all we need")

WANDA = Magnitude() * InputNorm()


add(
    "magnitude",
    Magnitude(),
    "tensor",
    HAN,
    "Keeps the largest |w| of every matrix; needs no data.",
    when="There are no data at hand, or the weights are trained on afterwards; the baseline of everything else.",
    when_not="A language model is pruned once and for all: Wanda and SparseGPT lose less at the same density.",
)
add(
    "magnitude_row",
    Magnitude(),
    "row",
    HAN,
    "Keeps the largest |w| of every output row.",
    when="Rows have to keep equally many weights without data; the baseline that differs from Wanda in the score alone.",
    when_not="A language model is pruned once and for all: Wanda and SparseGPT lose less at the same density.",
)
add(
    "magnitude_global",
    Magnitude(),
    "global",
    HAN,
    "Keeps the largest |w| of the whole model.",
    catalog=(85,),
    when="Weights are trained on afterwards, and the layers are to share the budget by the size of their weights.",
    when_not="Layers differ in scale for other reasons than importance: those of small weights are emptied first.",
)
add(
    "magnitude_erk",
    Magnitude(),
    "tensor",
    MOCANU,
    "Magnitude with Erdős–Rényi-kernel densities.",
    allocate=ERK(),
    when="Layers differ much in size and the sparsity is high: small layers keep more.",
    when_not="All layers have one shape: then it is `magnitude`.",
)
add(
    "random",
    Random(),
    "tensor",
    LIU,
    "Uniform at random: what every other method has to beat.",
    catalog=(21,),
    when="As a control: what cannot beat it has learned nothing about weights. Of random sets of hidden units one draw is enough: an MLP on "
    "digits (96.2 % dense) trained to 95.5, 94.8, 94.2 and 89.2 % with 50, 70, 80 and 90 % of its units left out, and the best of 100 draws by "
    "their loss before training (`weights.subnetworks.random_search`) to 95.8, 95.3, 94.1 and 90.9 %: no difference was found (12 seeds, "
    "Wilcoxon's signed-rank test, p ≥ 0.31 after Holm).",
    when_not="As a way to prune a trained model. Nor with 95 % of the units left out, best of 100 or not: 65 to 71 %, and far apart from seed to seed.",
)
add(
    "random_uniform_plus",
    Random(),
    "tensor",
    LIU,
    "Uniform, the first layer dense.",
    allocate=UniformPlus(),
    catalog=(31,),
    when="A static mask is trained from scratch, and the first layer is small and reads the data.",
    when_not="Densities are at 10 % or less: ERK densities train better there.",
)
add(
    "random_erk",
    Random(),
    "tensor",
    LIU,
    "A static random mask to train: wide nets match dense.",
    allocate=ERK(),
    catalog=(31,),
    when="A sparse network is trained from scratch at no cost of choosing; wide networks lose least.",
    when_not="The model is trained already: it forgets what it knew.",
)
add(
    "random_erk_plus", Random(), "tensor", LIU, "Erdős–Rényi-kernel densities, the classifier dense.",
    allocate=ERKPlus(), catalog=(31,),
    when="As `random_erk`, where the classifier is small and stays dense.",
    when_not="The classifier holds a large part of the weights: the other layers pay for it.",
)  # fmt: skip
add(
    "random_snip", Random(), "tensor", LIU, "A random mask with the layer densities of SNIP: as good as SNIP.",
    allocate=Global(SNIP()), catalog=(31,),
    when="To see whether SNIP gains by its layer densities or by its choice within layers.",
    when_not="There are no data or no loss before training: the densities are SNIP's.",
)  # fmt: skip
add(
    "random_balanced", Random(), "tensor", GADHIKAR, "As many weights in every layer: trains where uniform masks are too thin.",
    allocate=Balanced(), catalog=(131,),
    when="Training starts from a thin random mask in which equal densities would leave small layers next to nothing.",
    when_not="Layers are of one size: then it is `random`.",
)  # fmt: skip
add(
    "random_pyramidal", Random(), "tensor", GADHIKAR, "Density r^l of layer l.", allocate=Pyramidal(), catalog=(131,),
    when="Early layers of a deep chain are to keep more than late ones.",
    when_not="The order of the sites is not the order of computation: the densities follow the list.",
)  # fmt: skip

add(
    "wanda",
    WANDA,
    "row",
    SUN,
    "|w| ||x||, compared within output rows: far better than magnitude on LLMs, no update of weights.",
    when="A language model is pruned with one pass over little data; no weight changes and nothing is solved.",
    when_not="Sparsity is high or 2:4 and nothing is trained afterwards: SparseGPT, which adapts what stays, loses less.",
)
add(
    "wanda_ls",
    WANDA,
    "row",
    SUN,
    "Wanda's support with the exact least-squares values on it.",
    solve=Select(LeastSquares()),
    when="Wanda's support is given and the error of each layer is to be as small as it can be on it.",
    when_not="There are fewer calibration tokens than inputs of a layer: such a fit says little about other data.",
)
add(
    "wanda_bias",
    WANDA,
    "row",
    AN,
    "Wanda's support; biases take up the lost mean.",
    solve=Select(BiasCorrection()),
    when="Layers have biases: the mean output that pruning takes away comes back without cost at inference.",
    when_not="Layers have no bias, as in most decoders of the LLaMA kind: it is refused.",
)
add(
    "sparsegpt",
    OBS(),
    "tensor",
    FRANTAR,
    "Removes column after column, the rest of the row adapting.",
    solve=ObsSweep(),
    when="A language model is pruned once and for all, and minutes are there for the inverse of each layer's second moments.",
    when_not="There are no data, or no memory for a matrix of inputs x inputs a layer.",
)
add(
    "obs",
    OBS(),
    "row",
    OBC,
    "OBS saliency in one shot, least-squares values on the support.",
    solve=Select(LeastSquares()),
    when="The support is to be chosen at once and the values on it to be exact.",
    when_not="Time counts: exact values row by row take longer than the one sweep of SparseGPT.",
)
add(
    "admm",
    WANDA,
    "row",
    BOZA,
    "Weights and support in turn: below SparseGPT's error at some more time.",
    solve=ADMM(),
    when="Layer errors below those of SparseGPT are worth some more time.",
    when_not="Time counts, or weights must stay as they are: the support and the values both move for 20 steps.",
)
add(
    "owl",
    WANDA,
    "row",
    YIN,
    "Wanda; blocks with more outliers keep more. Pays from 70 % sparsity.",
    allocate=OWL(),
    when="A language model is pruned to 70 % sparsity and more: blocks with outliers keep more.",
    when_not="Half of the weights stay, where equal densities do as well, or the model has no repeated blocks to share among.",
)
add(
    "dlp",
    WANDA,
    "row",
    CHEN,
    "Wanda; blocks of low typical score keep more.",
    allocate=DLP(),
    catalog=(106,),
    when="A language model is pruned to 70 % sparsity and more, with any pruner: shares come from medians and need no threshold of outliers.",
    when_not="Half of the weights stay, where equal densities do as well, or the model has no repeated blocks to share among.",
)
add(
    "dsnot",
    WANDA,
    "row",
    ZHANG,
    "Wanda; weights change places until the outputs keep their mean. Works on any mask.",
    solve=DSnoT(),
    catalog=(117,),
    when="A mask is there, nothing can be trained, and weights must keep their values.",
    when_not="Layers are narrow: in short rows many swaps make the mean output right and the squared error larger.",
)

add(
    "evopress",
    OBS(),
    "tensor",
    SIEBERLING,
    "SparseGPT; counts of all layers searched by the divergence of the whole model's outputs.",
    allocate=EvoPress(),
    solve=ObsSweep(),
    catalog=(120,),
    when="Sparsity is high and there is time to measure many candidates of the whole model.",
    when_not="Time counts: each generation runs the model for all its offspring; OWL and DLP are closed forms.",
)

add(
    "gqsa",
    OBS(),
    "block:1x16/row",
    ZENG,
    "Runs of 16 inputs by their mean OBS saliency; `quantise_groups` rounds what is left to four bits.",
    catalog=(62,),
    when="Weights will be stored in runs of 16 inputs, rounded to four bits, so that indices cost next to nothing.",
    when_not="Quality at a given density counts more than bytes: single entries are the freer choice.",
)

add(
    "snip",
    SNIP(),
    "global",
    LEE,
    "|w g| at initialisation or on a trained model, over the whole model.",
    when="A support is chosen before training from a little data and a loss.",
    when_not="Sparsity is extreme: whole layers may be emptied, which SynFlow avoids.",
)
add(
    "grasp",
    GraSP(),
    "global",
    WANG,
    "Keeps the gradient flow: w (Hg), over the whole model.",
    when="A support is chosen before training, and gradients are to keep flowing through it.",
    when_not="The model is trained: at a minimum gradients vanish, and the score with them.",
)
add(
    "synflow",
    SynFlow(),
    "global",
    TANAKA,
    "No data and no layer collapse, in 100 rounds.",
    schedule=Rounds(100),
    when="A support is chosen before training without looking at data, at a sparsity at which others empty a layer.",
    when_not="The model is trained and data are there: the score looks at no data.",
)
add(
    "taylor",
    Taylor(),
    "global",
    MOLCHANOV,
    "E[(w g)^2], entry by entry; units of a pattern are summed.",
    when="A trained model and its loss are there, and single weights or whole units are to go.",
    when_not="There is no loss to differentiate: every batch needs a backward pass.",
)
add(
    "movement", Movement(), "tensor", SANH,
    "Keeps weights that fine-tuning moves away from zero; give the statistics of that training.", status="experimental",
    when="A pre-trained model is fine-tuned anyway: `track_movement` gathers what that training moves.",
    when_not="Weights are cut once: seen worse than magnitude then (digits, 10 % kept: 0.60 against 0.91); `movement_pruning` cuts while it learns.",
)  # fmt: skip
