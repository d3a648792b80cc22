"""What is wrong in tutorials, papers and public code, and what is done here instead; part of docs/losses.md."""

from __future__ import annotations

ERRATA: tuple[tuple[str, str, str], ...] = (
    (
        "widespread: Keras and PyTorch tutorials",
        "clip p to [ε, 1 - ε] before the logarithm: no gradient on the worst voxels, and no effect in fp16",
        "log-softmax and log-sigmoid; 1 - p as -expm1(log p)",
    ),
    (
        "junqiangchen/Image-Segmentation-Loss-Functions",
        "smoothing inside the factor 2: an empty class scores a Dice of 2; cross-entropy summed over space grows with "
        "the patch; Dice summed over the batch goes negative",
        "(2 TP + s) / (Σp + Σg + s) per sample; means over voxels",
    ),
    (
        "tutorials on focal loss",
        "say that γ = 1 is cross-entropy",
        "γ = 0 is; γ = 1 is not (1.909 against 2.112 on one example)",
    ),
    (
        "tutorials on class weights",
        "take sklearn's balanced weights from a minibatch: absent classes shorten the vector and shift the rest",
        "weights from the training set, one per class, 0 for an absent one",
    ),
    (
        "Jadon 2020",
        "prints sensitivity-specificity and combo with the sign of a score; swaps the roles in Tversky",
        "losses to be minimised; α prices false positives, β false negatives",
    ),
    (
        "HaipengXiong/weighted-hausdorff-loss",
        "implements the first arXiv version, not the CVPR formula (1.13 against 7.44)",
        "the CVPR formula",
    ),
    (
        "focal Tversky, several ports",
        "γ = 0.75 is the exponent, where the paper's exponent is 1/γ; smp and SegLossOdyssey take the power after "
        "averaging the classes",
        "the paper's 1/γ with γ = 4/3, per class",
    ),
    (
        "combo, every public port",
        "a wrong sign, a misplaced bracket (background weighed α(1 - α)), or β on the background",
        "the paper's formula; no port agrees",
    ),
    (
        "Yeung 2022, Eq. 16-22",
        "Eq. 20 prints the rare class's logarithm in the common sum; λ sits on the focal part in the equations and "
        "on the Tversky part in the figure and code; γ and 1 - γ change places between the pairs",
        "λ on the focal part; exponents γ and 1 - γ, the only reading under which γ = 0 is neutral",
    ),
    (
        "unified focal losses",
        "γ = 0, δ = 0.5 is said to recover Dice and cross-entropy",
        "Dice exactly, cross-entropy up to a factor of one half",
    ),
    ("U-Net 2015, Eq. 1", "the energy is printed without a minus sign", "a loss to be minimised"),
    (
        "MONAI 1.6.1 FocalLoss",
        "the softmax form is 1/C of the mean over voxels; with ignore_index its divisor loses the C",
        "the mean over voxels",
    ),
    (
        "MONAI 1.6.1 DiceCELoss, DiceFocalLoss",
        "sigmoid=True with several channels uses softmax cross-entropy; softmax=True uses sigmoid focal",
        "one mode for all terms",
    ),
    (
        "MONAI 1.6.1 AsymmetricUnifiedFocalLoss",
        "no activation in spite of its documentation; the focal term is halved; δ = 0.7",
        "logits in; the formula; δ = 0.6",
    ),
    ("MONAI 1.6.1 SoftclDiceLoss", "pools channels together and takes activated input", "per channel, from logits"),
    (
        "official unified-focal-loss",
        "in 3D it indexes the wrong axis; classes from 2 on are ignored",
        "any dimension, all classes",
    ),
    (
        "SegLossOdyssey",
        "the distance-penalised cross-entropy returns the unweighted mean; the penalty Dice takes the negative score; "
        "the exponential logarithmic loss takes the power of the mean",
        "the papers' formulas",
    ),
    ("T-loss, author's code", "e times the identity instead of the identity as precision", "log_precision = 0"),
    (
        "blob loss, author's example",
        "masks logits with 0, which a sigmoid turns into 0.5",
        "masked voxels leave all sums",
    ),
    (
        "clDice, author's code",
        "ignores its number of iterations and adds up the batch",
        "the number is used; per sample",
    ),
    (
        "Hausdorff, several ports",
        "erosions on detached arrays carry no gradient; distances inside the mask only",
        "differentiable erosions; distances on both sides",
    ),
    (
        "symmetric cross-entropy, authors' code and ports",
        "clip the target at 1e-4, so that log 0 is -9.2, where the paper sets it to -4",
        "the paper's -4: their β is 2.3 of ours",
    ),
    ("PyMIC, noise-robust Dice", "divides by Σp + Σg, with which γ = 2 is no Dice", "the paper's Σp² + Σg²"),
    (
        "boundary DoU, author's code",
        "α becomes negative for thin structures, where the paper has [0, 1); 2D only; sums over the batch",
        "α of at least 0, in two or three dimensions; batch is a knob",
    ),
    (
        "mmsegmentation, OHEM",
        "divides by all voxels, ignored ones included; drops the easiest voxel of a small image",
        "the mean over the voxels that are kept",
    ),
    (
        "region mutual information, authors' code",
        "pads its blocks with zeros, takes ignored voxels for background, adds 1e-8 within the logarithm",
        "whole blocks; neighbourhoods with an ignored voxel are left out; nothing added",
    ),
    (
        "cbDice, authors' code",
        "the least radius is that of the voxels off the centre line, 0; since publication weights are differences of "
        "radii, not quotients",
        "the paper's quotients; inverse=\"difference\" for the code's",
    ),
    ("kornia and others, Tversky", "micro average over softmax classes makes α and β cancel", "a ratio per class"),
)
