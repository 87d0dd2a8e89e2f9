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


add("magnitude", Magnitude(), "tensor", HAN, "Keeps the largest |w| of every matrix; needs no data.")
add("magnitude_row", Magnitude(), "row", HAN, "Keeps the largest |w| of every output row.")
add("magnitude_global", Magnitude(), "global", HAN, "Keeps the largest |w| of the whole model.")
add("magnitude_erk", Magnitude(), "tensor", MOCANU, "Magnitude with Erdős–Rényi-kernel densities.", allocate=ERK())
add("random", Random(), "tensor", LIU, "Uniform at random: what every other method has to beat.")
add(
    "random_uniform_plus",
    Random(),
    "tensor",
    LIU,
    "Uniform, the first layer dense.",
    allocate=UniformPlus(),
    catalog=(31,),
)
add(
    "random_erk",
    Random(),
    "tensor",
    LIU,
    "A static random mask to train: wide nets match dense.",
    allocate=ERK(),
    catalog=(31,),
)
add(
    "random_erk_plus", Random(), "tensor", LIU, "Erdős–Rényi-kernel densities, the classifier dense.",
    allocate=ERKPlus(), catalog=(31,),
)  # fmt: skip
add(
    "random_snip", Random(), "tensor", LIU, "A random mask with the layer densities of SNIP: as good as SNIP.",
    allocate=Global(SNIP()), catalog=(31,),
)  # fmt: skip
add(
    "random_balanced", Random(), "tensor", GADHIKAR, "As many weights in every layer: trains where uniform masks are too thin.",
    allocate=Balanced(), catalog=(131,),
)  # fmt: skip
add(
    "random_pyramidal", Random(), "tensor", GADHIKAR, "Density r^l of layer l.", allocate=Pyramidal(), catalog=(131,),
)  # fmt: skip

add(
    "wanda",
    WANDA,
    "row",
    SUN,
    "|w| ||x||, compared within output rows: far better than magnitude on LLMs, no update of weights.",
)
add(
    "wanda_ls",
    WANDA,
    "row",
    SUN,
    "Wanda's support with the exact least-squares values on it.",
    solve=Select(LeastSquares()),
)
add("wanda_bias", WANDA, "row", AN, "Wanda's support; biases take up the lost mean.", solve=Select(BiasCorrection()))
add(
    "sparsegpt",
    OBS(),
    "tensor",
    FRANTAR,
    "Removes column after column, the rest of the row adapting.",
    solve=ObsSweep(),
)
add(
    "obs",
    OBS(),
    "row",
    OBC,
    "OBS saliency in one shot, least-squares values on the support.",
    solve=Select(LeastSquares()),
)
add("admm", WANDA, "row", BOZA, "Weights and support in turn: below SparseGPT's error at some more time.", solve=ADMM())
add("owl", WANDA, "row", YIN, "Wanda; blocks with more outliers keep more. Pays from 70 % sparsity.", allocate=OWL())
add("dlp", WANDA, "row", CHEN, "Wanda; blocks of low typical score keep more.", allocate=DLP(), catalog=(106,))
add(
    "dsnot",
    WANDA,
    "row",
    ZHANG,
    "Wanda; weights change places until the outputs keep their mean. Works on any mask.",
    solve=DSnoT(),
    catalog=(117,),
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
)

add(
    "gqsa",
    OBS(),
    "block:1x16/row",
    ZENG,
    "Runs of 16 inputs by their mean OBS saliency; `quantise_groups` rounds what is left to four bits.",
    catalog=(62,),
)

add("snip", SNIP(), "global", LEE, "|w g| at initialisation or on a trained model, over the whole model.")
add("grasp", GraSP(), "global", WANG, "Keeps the gradient flow: w (Hg), over the whole model.")
add("synflow", SynFlow(), "global", TANAKA, "No data and no layer collapse, in 100 rounds.", schedule=Rounds(100))
add("taylor", Taylor(), "global", MOLCHANOV, "E[(w g)^2], entry by entry; units of a pattern are summed.")
add(
    "movement", Movement(), "tensor", SANH,
    "Keeps weights that fine-tuning moves away from zero; give the statistics of that training.", status="experimental",
)  # fmt: skip
