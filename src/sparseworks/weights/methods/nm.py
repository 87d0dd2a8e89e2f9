"""Methods that train N:M weights."""

from __future__ import annotations

from sparseworks.core.method import Source
from sparseworks.core.schedule import Exponential, Linear
from sparseworks.scores import Magnitude
from sparseworks.weights.methods.add import add
from sparseworks.weights.train.adam import AdamDecay, AdamShrink
from sparseworks.weights.train.bidirectional import Bidirectional
from sparseworks.weights.train.fade import FadePatterns, FadeValues
from sparseworks.weights.train.hold import Hold
from sparseworks.weights.train.quantised import Quantised
from sparseworks.weights.train.straight import Straight

BENGIO = Source("Bengio, Léonard and Courville", 2013, "1308.3432", "Estimating or propagating gradients")
ZHOU = Source("Zhou, Ma, Zhu, Liu, Zhang, Yuan, Sun and Li", 2021, "2102.04010", "Learning N:M from scratch")
BAMBHANIYA = Source(
    "Bambhaniya, Yazdanbakhsh, Subramanian, Kao, Agrawal, Evci and Krishna",
    2024,
    "2402.04744",
    "Progressive gradient flow",
)
FANG = Source("Fang, Sun, Zhou and Wang", 2023, "2309.13015", "Efficient N:M sparse training (BDWP)")
AST = Source("Huang, Hu, Jian, Zhu and Chen", 2024, "2407.20584", "Pruning large language models with AST")
CAST = Source("Huang, Hu, Zhu and Chen", 2025, "2509.25996", "Continuous adaptive sparse trainer")

YU = Source(
    "Yu, Chen, Gan and Fan", 2023, "2305.10727", "Boost vision transformer with GPU-friendly sparsity and quantization"
)

add(
    "ste",
    Magnitude(),
    "2:4",
    BENGIO,
    "Plain straight-through training of N:M weights.",
    train=Straight(),
    when="2:4 weights are trained and the simplest rule will do; the baseline of N:M training.",
    when_not="Patterns are sparser than 2:4: supports keep changing, and SR-STE ends at a lower loss.",
)
add(
    "sr_ste", Magnitude(), "2:4", ZHOU, "Straight-through training in which dropped weights decay, so that supports settle.",
    train=Straight(decay=2e-4), catalog=(89,),
    when="N:M weights are trained from scratch or from a dense model, at 2:4, 1:4 or 1:8.",
    when_not="Few steps are left to retrain a dense model: AST decays inside Adam and loses less.",
)  # fmt: skip
add(
    "mdgf_linear", Magnitude(), "1:16", BAMBHANIYA, "Dropped weights fade linearly: above 80 % sparsity better than SR-STE.",
    schedule=Linear(1.0, 0.0), train=FadeValues(), catalog=(30,),
    when="Perceptrons of a transformer are trained from scratch with Adam at more than 80 % sparsity. Three million weights on bytes of books, 1200 "
    "steps, faded until 0.6 of them: 1.577 at 1:32, SR-STE at its best decay 1.697 (each on the seed it was tuned on).",
    when_not="The pattern is 2:4: it ties with SR-STE there; or a dense model is retrained in few steps: tinyshakespeare at 1:16, 400 steps, 2.370, "
    "SR-STE 2.308. Where steps are few, let values fade until 0.3 of them.",
)  # fmt: skip
add(
    "mdgf_exp", Magnitude(), "1:16", BAMBHANIYA, "Dropped weights fade exponentially: the better of the two on vision.",
    schedule=Exponential(), train=FadeValues(), catalog=(30,),
    when="As `mdgf_linear`: with exp(-11 t) over the whole run, as its authors have it, that transformer came to 1.625 at 1:32 (on the seed it was tuned on).",
    when_not="The pattern is 2:4, where it ties with SR-STE; or a dense model is retrained in few steps: tinyshakespeare at 1:16, 400 steps, 2.312, "
    "SR-STE 2.308. Attention is sparse as well, or SGD trains it: gains were seen with Adam and sparse perceptrons only.",
)  # fmt: skip
add(
    "sdgf_stepwise", Magnitude(), "1:16", BAMBHANIYA, "15:16, 8:16, 4:16 ... 1:16 in equal frames.",
    train=FadePatterns(), catalog=(30,),
    when="As `mdgf_linear`, and products shall skip from the first frame on: with frames until 0.4 of its steps that transformer came to 1.598 at 1:32 "
    "(on the seed it was tuned on).",
    when_not="The pattern is 2:4: it ties with SR-STE there; or a dense model is retrained in few steps: tinyshakespeare at 1:16, 400 steps, 2.366, "
    "SR-STE 2.308.",
)  # fmt: skip
add(
    "sdgf_geometric", Magnitude(), "1:4", BAMBHANIYA, "8N:8M, 4N:4M, 2N:2M, N:M: freedom of choice goes step by step.",
    train=FadePatterns(ramp="geometric"), status="experimental", catalog=(30,),
    when="N:M weights are trained at more than 80 % sparsity, at one density all the while.",
    when_not="The pattern is 2:4, or 8M does not divide the inputs: frames that do not fit are left out. Or a dense model is retrained in "
    "few steps: tinyshakespeare at 1:16, 400 steps, 2.324, SR-STE 2.308 (three seeds).",
)  # fmt: skip
add(
    "bdwp", Magnitude(), "2:8", FANG, "Two of three products of training skip; 0.56 % of accuracy at 2:8.",
    train=Bidirectional(), catalog=(36,),
    when="Training itself is to skip products, on hardware that multiplies N:M in both directions.",
    when_not="Only inference shall be fast: SR-STE needs no second mask. A trained ResNet-20 tuned at 2:8 on CIFAR-10 came to 88.1 %, by SR-STE to 87.0 (one seed).",
)  # fmt: skip
add(
    "ast", Magnitude(), "2:4", AST, "Retrains a dense model to 2:4: annealed decay of dropped weights inside Adam; distil from the dense model.",
    train=AdamDecay(), catalog=(174,),
    when="A dense model is there as a start and as a teacher, and is retrained to 2:4 with Adam or AdamW; try decays, the default is that of large models. A "
    "transformer of three million weights on bytes of books, 1000 steps: 1.382 at 6e-2, SR-STE 1.407 (each on the seed it was tuned on).",
    when_not="The optimiser is another one: the decay acts inside Adam's moments, and others are refused; or CAST can be taken: on tinyshakespeare it ended lower at 2:4 to 1:16.",
)  # fmt: skip
add(
    "cast", Magnitude(), "2:4", CAST, "No mask until the end: L1 decay inside Adam prunes, row scales make it good; distil from the dense model.",
    train=AdamShrink(), catalog=(162,),
    when="A dense model is retrained with Adam to 1:4 or sparser and is its own teacher. Try decays, the default is that of large models: tinyshakespeare, 400 "
    "steps, decay 5e-2, came to 2.127 at 1:8, AST (6e-2) to 2.145, SR-STE to 2.162 (three seeds, deviations 0.002 to 0.006).",
    when_not="The pattern is 2:4: there it was 2.059 and SR-STE 2.061, less than the spread. The run is very short (200 steps at 1:4 in the test): the cut costs "
    "more than AST's; or the rate does not fall: weights that go to zero stay within a rate of it, and are lost at the cut.",
)  # fmt: skip
add(
    "gpusq", Magnitude(), "2:4", YU, "First stage: 2:4 held, distilled from logits and features of the dense model.",
    train=Hold(), catalog=(179,),
    when="A vision transformer goes to 2:4 with its dense model as teacher, above all where few data are there to retrain on: add the terms `Logits` and `Features`.",
    when_not="There is no teacher: the method is the distillation, the support is that of magnitude.",
)  # fmt: skip
add(
    "gpusq_qat", Magnitude(), "2:4", YU, "Second stage: the same support, fake-quantised weights and inputs.",
    train=Quantised(), catalog=(179,),
    when="After `gpusq`, for inference in whole numbers of few bits, with the terms of the first stage: a small transformer on digits at 4 bits was 88.9 % "
    "right, rounded after as long a training 87.6 (four seeds). `input_steps` and `rounded_inputs` round inputs of the finished model.",
    when_not="As the first step, or where inference stays in floating point. Data are few: with 32 images it was hardly nearer to the dense model. Weights of "
    "features by their errors (`Features.weighed`) gave no more than equal ones: 88.9 % each.",
)  # fmt: skip
