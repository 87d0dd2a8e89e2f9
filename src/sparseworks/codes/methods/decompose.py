"""Sums of simple parts: low rank plus sparse, spectra times abundances, signals with gaps."""

from __future__ import annotations

from functools import partial

from sparseworks.codes.method import CodesRoutine
from sparseworks.core.published import Source
from sparseworks.core.routine import add_routine

_add = partial(add_routine, CodesRoutine)

_add(
    "robust_pca",
    "codes.decompose.robust_pca:robust_pca",
    "object=matrix_entry score=magnitude pattern=unstructured+low_rank budget=weight(1/sqrt(n)) schedule=alternating execution=svd",
    Source("Candes, Li, Ma, Wright", 2011, "0912.3599", "Robust Principal Component Analysis?"),
    "A matrix as low rank plus sparse, exactly where both are.",
    when="A few entries are grossly wrong, or a small foreground moves over a background of low rank.",
    when_not="Every entry is a little noisy: a truncated SVD is the answer then.",
)
_add(
    "spain",
    "codes.decompose.inpaint:spain",
    "object=time_frequency_coefficient score=|Ax+u| pattern=unstructured(conjugate pairs) budget=count(grows) schedule=every_r_rounds repair=dual execution=fft",
    Source("Mokry, Zaviska, Rajmic, Vesely", 2019, "1810.13137", "Introducing SPAIN (SParse Audio INpainter)"),
    "Audio inpainting by ADMM with a growing number of time-frequency coefficients, analysis or synthesis form.",
    catalog=(160,),
    when="Short gaps in tonal sound; measured on gaps of 5 ms (80 samples at 16 kHz), where it is 4 dB above basis pursuit on the same frame, and 10 dB more with twice its coefficients.",
    when_not="Gaps as long as a frame, or noise-like sound, which no few coefficients describe.",
)
_add(
    "rrlbs",
    "codes.decompose.unmixing:rrlbs",
    "object=abundance score=none pattern=l_p_per_pixel budget=guidance_map schedule=alternating repair=band_weights(l21) execution=multiplicative",
    Source("Zhu, Wang, Fan, Meng, Xiang, Pan", 2014, "1409.0685", "Spectral Unmixing via Data-guided Sparsity"),
    "Spectral unmixing with an l2,1 loss over bands and a sparsity of every pixel that is learned with its abundances.",
    catalog=(59,),
    when="Some bands are corrupted, and pixels differ in how many materials they hold.",
    when_not="Endmembers are known and clean: non-negative least squares is enough.",
)
_add(
    "correntropy_nmf",
    "codes.decompose.unmixing:correntropy_nmf",
    "object=abundance score=none pattern=l_1/2 budget=weight schedule=half_quadratic repair=band_weights(correntropy) execution=multiplicative",
    Source("Wang, Pan, Xiang, Zhu", 2015, "", "Robust Hyperspectral Unmixing with Correntropy-Based Metric"),
    "Spectral unmixing that turns noisy bands down exponentially.",
    catalog=(281,),
    when="Some bands are so noisy that they should not count at all.",
    when_not="Noise is even: weights then only lose data.",
)
_add(
    "rdledm",
    "codes.decompose.dynamic_mri:rdledm",
    "object=gradient+spectrum score=prox pattern=total_variation+low_rank(two unfoldings) budget=weights schedule=primal_dual repair=error_term execution=fft+svd",
    Source(
        "Tan, Qing, Xu",
        2023,
        "2310.14934",
        "Robust Depth Linear Error Decomposition with Double Total Variation and Nuclear Norm for Dynamic MRI Reconstruction",
    ),
    "Image sequences from few samples of k-space, with total variation in space and time and low rank in two unfoldings.",
    catalog=(86,),
    when="Frames of a still body in which something moves, sampled at other places of k-space each time.",
    status="experimental",
    when_not="Every frame is sampled at the same places, which no prior over time can mend. Both kinds of prior are not needed: on a phantom of 64 x 64 and 20 "
    "frames (a fifth of k-space, 100 steps, 3 masks, each at its best weight of a small grid) zero filling gave 26.1 to 26.2 dB, nuclear norms alone 29.9, "
    "variation in time alone 31.9 to 32.0, in space alone 32.6 to 32.7, all four as registered 33.9 to 34.0 and with a quarter of the weights of variation "
    "35.5 to 35.6, but the two variations without nuclear norms 36.4, from which nuclear=(0, 0.02) took 0.1. So it was with 32 x 32 and 12 frames, with six "
    "times the noise, and with contrast that comes and goes every three frames; nuclear norms added to the better of the two variations only where tissue was noise-like and its contrast swung by four fifths (0.2 dB): "
    "try nuclear=(0, 0) first.",
)
_add(
    "rpcanet",
    "codes.decompose.rpcanet:RPCANet",
    "object=image_residual score=learnt_proximal_step pattern=spatial budget=learnt schedule=unrolled(stages) repair=restoration_network execution=convolutions",
    Source(
        "Wu, Dai, Zhang, Ding, Yang, Cheng, Peng",
        2025,
        "2508.04190",
        "RPCANet++: Deep Interpretable Robust PCA for Sparse Object Segmentation",
    ),
    "Robust PCA unrolled into a few stages of small networks that segment small objects on smooth ground.",
    catalog=(1,),
    when="Masks of some hundred images are at hand, and objects are small and lie on ground that changes slowly.",
    when_not="No masks: `robust_pca` needs none. Objects that fill much of the image are no sparse part. One processor core: an image of 64 x 64 took "
    "0.12 s (three stages of 32 channels), robust PCA 0.08 to 0.25 s by its tolerance, so that nothing was left of the paper's gain in time, a graphics card's.",
)
