"""Sparse autoencoders: TopK and its relatives, learned thresholds, pursuit, nested budgets, bilinear."""

from __future__ import annotations

from sparseworks.codes.autoencoders.auxiliary import AuxK, AuxZipf, PreAct, Resample
from sparseworks.codes.autoencoders.method import add_autoencoder
from sparseworks.codes.autoencoders.prefixes import Hierarchical, Matryoshka
from sparseworks.codes.autoencoders.rules import (
    BatchTopK,
    Bilinear,
    FeatureChoice,
    Gated,
    GradientTopK,
    JumpReLU,
    KSparse,
    MatchingPursuit,
    ReLU,
    TopK,
)
from sparseworks.core.published import Source

_CHOICE = Source("Ayonrinde", 2024, "2411.02124", "Adaptive sparse allocation with mutual choice and feature choice")

add_autoencoder(
    "k_sparse_ae",
    KSparse(k=32, start=128),
    Source("Makhzani and Frey", 2013, "1312.5663", "k-sparse autoencoders"),
    "features for a linear classifier better than those of a dense autoencoder",
    catalog=(143,),
    when="Features of data for a classifier, or a first dictionary without any auxiliary loss.",
    when_not="Very small k (below about 5): features become global and weak. On 8 x 8 digits its features beat those of a dense autoencoder "
    "(+2.3 points of accuracy with 100 labels), and were level with those of a denoising one. With many latents use `topk_sae`.",
)
add_autoencoder(
    "topk_sae",
    TopK(k=32),
    Source("Gao et al.", 2024, "2406.04093", "Scaling and evaluating sparse autoencoders"),
    "L0 is set, not tuned; few dead latents at 16 million",
    auxiliary=AuxK(),
    when="The default for activations of language models: one number sets the sparsity, and codes are cheap.",
    when_not="Tokens differ much in how much they hold: `batch_topk_sae`.",
)
add_autoencoder(
    "batch_topk_sae",
    BatchTopK(k=32),
    Source("Bussmann et al.", 2024, "2412.06410", "BatchTopK sparse autoencoders"),
    "lower error than TopK at the same mean L0",
    auxiliary=AuxK(k=16, after=20_480, normalised=False),
    when="A mean L0 is wanted and tokens differ in how many latents they need; export gives one threshold. On MiniLM's layer 2 (2000 "
    "steps of 1024 tokens, two seeds) it explained 0.802 at L0 7.9 and 0.846 at 15.6 where TopK did 0.785 and 0.839, on `sparseworks/tiny-lm` 0.875 at 16.3 and 0.870.",
    when_not="Every token must have at most k latents. The auxiliary loss of the authors' code, 512 latents at once (`auxiliary=AuxK(k=512, ...)`), is wanted: with it "
    "12 % of the latents were dead at L0 8 on MiniLM, with 16 at once 0.05 %.",
)
add_autoencoder(
    "mutual_choice",
    BatchTopK(k=32),
    _CHOICE,
    "lower loss at equal L0 where complexity varies by token",
    auxiliary=AuxZipf(),
    catalog=(24,),
    when="As `batch_topk_sae`, where features that are dying should be helped before they are dead.",
    when_not="Every token must have at most k latents. Few latents are to be dead: on planted data with four latents a feature it found the features, "
    "with as many latents, and the other three quarters were dead (three seeds, with and without the auxiliary loss); of TopK's 12 to 38 % were, at "
    "seven times the variance that was not explained.",
)
add_autoencoder(
    "feature_choice",
    FeatureChoice(k=32),
    _CHOICE,
    "no dead features at all",
    auxiliary=AuxZipf(),
    catalog=(24,),
    when="Dead latents must not be: every feature has its share of each batch.",
    when_not="Error matters more: on planted data it left 1.2 to 1.6 times the variance of TopK at equal L0 (no latent was dead). Batches "
    "of fewer tokens than it takes for rare features to occur.",
)
add_autoencoder(
    "jumprelu_sae",
    JumpReLU(l0=32.0, bandwidth=0.05, to_input=0.3),
    Source("Rajamanoharan et al.", 2024, "2407.14435", "Jumping ahead: JumpReLU sparse autoencoders"),
    "fidelity at a given L0 equal to or above Gated and TopK",
    auxiliary=PreAct(),
    when="Thresholds a latent are to be learned, and inference is to be one comparison. Of what encodes in one product it explained most on MiniLM's layer 2 "
    "(2000 steps of 1024 tokens, two seeds): 0.810 at L0 7.9 and 0.854 at 15.7, where TopK did 0.785 and 0.840 and BatchTopK 0.802 and 0.846; at most "
    "0.3 % of its latents were dead.",
    when_not="An exact L0 is needed: the one asked for is met within some per cent. The settings of the paper (`bandwidth=0.001, to_input=0.0`, no "
    "auxiliary loss, `betas=(0.0, 0.999)` of the training) are for long training: with gradients of thresholds alone, a bandwidth of 0.02 and Adam without "
    "momentum it explained 0.783 at 8 in these 2000 steps, less than TopK, and 4 % of its latents were dead.",
)
add_autoencoder(
    "gated_sae",
    Gated(l0=32.0),
    Source("Rajamanoharan et al.", 2024, "2404.16014", "Improving dictionary learning with gated sparse autoencoders"),
    "no shrinkage; half the L0 of ReLU at equal fidelity",
    auxiliary=Resample(),
    when="A comparison with published Gated autoencoders.",
    when_not="An exact L0 is needed: the one asked for is met within some per cent.",
)
add_autoencoder(
    "relu_sae",
    ReLU(l0=32.0),
    Source("Bricken et al.", 2023, "2309.08600", "Towards monosemanticity"),
    "the baseline of all others",
    auxiliary=Resample(),
    when="A baseline, or attention outputs as Kissane et al. (2024) did.",
    when_not="Fidelity matters: the penalty shrinks every value.",
)
add_autoencoder(
    "g_sae",
    GradientTopK(k=32),
    Source("Olmo et al.", 2024, "2411.10397", "Features that make a difference: leveraging gradients"),
    "spliced-in loss of the model closer to the model's own at equal L0",
    auxiliary=AuxK(),
    catalog=(25,),
    when="The autoencoder is to be spliced in or steered with, and gradients of the model can be had, at inference too (`sae.coded(x, Moment(1.0, gradients))`), as in an "
    "analysis of given text: on models of Markov text in four styles (3 layers, 96 latents in the middle) splicing then cost 11 to 66 % less of the loss than TopK's (k of 4, "
    "four models), 17 to 41 % less with longer training (k of 2 and 4, three models), with at most half a point less variance explained.",
    when_not="Only reconstruction counts, or there are no gradients at inference: chosen by gradients in training and by size at inference, latents do not match. On the same models "
    "splicing cost less than TopK's in 4 of 6 cases so (beta 1), in 2 of 6 with beta 5. Gradients of text that is given know the next token, so that the gain above tells nothing of a "
    "model in use; which of both the authors measured was not to be found out. On `sparseworks/tiny-lm` at L0 16, 6000 steps of 2048 tokens at three rates, one seed, before encoders "
    "began as published, cross-entropy recovered was 0.9732, 0.9772, 0.9773 without gradients at inference, where TopK's was 0.9729, 0.9773, 0.9777.",
)
add_autoencoder(
    "mp_sae",
    MatchingPursuit(k=32),
    Source("Costa et al.", 2025, "2506.03093", "From flat to hierarchical: matching pursuit"),
    "finds features that depend on others; any k at inference, each step lowering the error",
    catalog=(32,),
    when="Features form hierarchies, k is to be chosen at inference, or most is to be explained at an L0: on MiniLM's layer 2, trained at 8 (2000 "
    "steps of 1024 tokens, one seed), 0.835 at 8 and 0.877 at 16, where TopK trained for each did 0.788 and 0.841.",
    when_not="Encoding must be cheap: it takes k passes over the dictionary. The number of features a token has is not known and no residual ends its "
    "pursuit: on the authors' tree (20 features, 500 steps, four seeds) 1 - |cos| of its atoms was 0.03 where a token ended at 3 % (TopK 0.18, BatchTopK "
    "0.11, at two latents a token), 0.17 with two steps a token. On a tree whose parents never come alone (8, with 24 children, three seeds) its atoms "
    "were not found better than TopK's: 0.15, 0.24, 0.17 beside 0.16, 0.19, 0.18 (BatchTopK 0.21, 0.24, 0.20).",
)
add_autoencoder(
    "hierarchical_topk",
    TopK(k=64),
    Source("Balagansky et al.", 2025, "2505.24473", "Train one sparse autoencoder across multiple sparsity budgets"),
    "one model on the front of those trained for each k",
    auxiliary=AuxK(),
    prefixes=Hierarchical(),
    catalog=(157,),
    when="One autoencoder is to serve many budgets: cut its codes to any k. On MiniLM's layer 2 (2000 steps of 1024 tokens, two seeds), trained at "
    "32, it explained 0.801 at 8, 0.847 at 16 and 0.871 at 32 where TopK trained for each did 0.785, 0.841 and 0.883.",
    when_not="Training must be as quick as can be: every prefix of every code is decoded. Trained for few budgets (`every`: 0, powers of two) it is on "
    "the front only at small ones.",
)
add_autoencoder(
    "matryoshka_sae",
    BatchTopK(k=32),
    Source("Bussmann et al.", 2025, "2503.17547", "Learning multi-level features with matryoshka sparse autoencoders"),
    "less absorption and splitting of features at larger dictionaries",
    auxiliary=AuxK(k=512, after=81_920, normalised=False),
    prefixes=Matryoshka(),
    when="General features are to stay in the first latents however large the dictionary. On `sparseworks/tiny-lm` at L0 16 (2000 steps of 1024 tokens, one seed) a smaller "
    "part of kinds of tokens was absorbed (0.31 beside TopK's 0.44) and attributes were better disentangled (0.81 beside 0.75).",
    when_not="Reconstruction alone counts: on `sparseworks/tiny-lm` it explained 0.851 at L0 15.6 where TopK did 0.867. One latent shall tell a kind of "
    "text: 0.79 were told right, by TopK's 0.84. Attributes alone count: raw activations were disentangled better (0.84) than any latents.",
)
add_autoencoder(
    "bilinear_ae",
    Bilinear(),
    Source("Dooms and Gauderis", 2025, "2510.16820", "Finding manifolds with bilinear autoencoders"),
    "activations as input-independent polynomials",
    catalog=(231,),
    when="Manifolds (circles, surfaces) are looked for, whose features are no single directions.",
    when_not="Sparse codes with an exact count are needed: its latents are dense, only few are large.",
)
