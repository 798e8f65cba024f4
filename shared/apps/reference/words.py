"""What is said of a config's key where no component's docstring says it well."""

# by the whole id
WORDS = {
    "dataset_dir": "the prepared folder; paths in the datalist are relative to it",
    "cache_dir": "folder of what was cut or decoded before; None: nothing is kept; default `.cache` in `dataset_dir`",
    "cache_gb": "limit of that folder in GB; entries used longest ago are removed",
    "memory_gb": (
        "decoded patches beyond so many GB are never held in memory: without `cache_dir` they are in a temporary file"
    ),
    "atlas_file": "the tract atlas; default `atlas.npz` in `dataset_dir`",
    "ckpt_dir": "folder of the checkpoints and of `model.json`; default `models` in the bundle",
    "dicom_out": "inference of patients prepared from DICOM: folder of their results as DICOM; null: none",
    "dicom_source": "where the DICOM files lie, if they have moved; or the record beside the key of pseudonyms",
    "output_dir": (
        "folder of tables, metrics and pictures; default `eval` in the bundle, for inference `eval/inference`"
    ),
    "device": "default the GPU if there is one, else the CPU",
    "bf16": "compute in bfloat16; default True on devices that are fast at it",
    "channels_last": "memory order of images in the network; a matter of speed",
    "checkpointing": "compute the image encoder's blocks again in the backward pass: less memory, more time",
    "seed": "of all random numbers",
    "resume": "True: skip finished stages and continue after the last saved epoch",
    "split": (
        "the datalist's part that is predicted: `validation`, `testing` or `training`; in a training the part "
        "validated on"
    ),
    "coverage": "share of the patients of each class whose class shall be in the column `set`; needs `conformal.json`",
    "val_interval": "epochs of the last stage between two validations",
    "num_slices": "slices of each volume that become images; those of largest tumour area",
    "use_modalities": "names of the modalities that are taken of each patient, in this order; None: all",
    "num_modalities": "modalities that are taken of each patient; default as many as `use_modalities` names, else 3",
    "num_classes": "number of classes",
    "in_channels": "sequences of each patient",
    "covariates": "names of clinical values that join the classifier's head; every patient needs them",
    "fold": (
        "training cases with this `fold` become the validation part (patches: if the datalist has no "
        "`validation` part); -1: train on all of them, and validate on `testing` (patches: not at all)"
    ),
    "size": "side of the images that the network classifies, in pixels",
    "finetune_epochs": "epochs of the stage `train`",
    "train#batch_size": "items per step, of all processes together; None: all in one batch",
    "train#samples_per_epoch": (
        "with `class_balance`: patches drawn per epoch at least; the number of training patches if that is larger"
    ),
    "train#soft_labels": "True: the target is `soft_label` (shares of votes) instead of `label`",
    "pretrain#temperature": "tau of the contrastive loss",
    "contrast#temperature": "tau of Eq. 4 to 6",
    "contrast#tumour_weight": "lambda of Eq. 7, the share of the tumour level, 0 to 1",
    "contrast#contrastive_weight": "weight of the contrastive loss; 0: none",
    "contrast#classification_weight": "weight of the joint classifier's cross-entropy; 0: it is not trained",
    "contrast#unimodal_weight": "weight of the single encoders' classifiers; 0: they are not trained",
    "contrast#unimodal_share": (
        "share of the epochs, the first ones, in which each encoder learns from its own classifier only"
    ),
    "contrast#rotation": "largest random rotation of the tumour in degrees, about an axis drawn uniformly",
    "contrast#sequence_dropout": (
        "probability of leaving out each sequence of a patient in training, at least one stays; above 0: the model "
        "predicts patients who lack sequences (null in the datalist), and says so"
    ),
    "shares#self_supervised": (
        "relative share of the training patients that goes to the stages `nodes` and `edges`; 0: they take those "
        "of `contrast`"
    ),
    "shares#contrastive": "relative share of the training patients that goes to the stage `contrast`",
    "shares#population": "relative share of the training patients that goes to the population graph",
    "preparing#size": "side of the tumour's crop in voxels of 2 mm",
    "preparing#outside": (
        "what becomes zero in the crop: `box`: all outside the mask's box; `mask`: all outside the mask"
    ),
    "preparing#num_points": "points sampled from the tumour's surface",
    "preparing#radii": "radius of each level's point graph in mm",
    "preparing#max_neighbours": "neighbours kept of a point",
    "preparing#num_voxels": "voxels sampled of each region and of each tract",
    "preparing#margin": "mm about the tumour that do not count as healthy brain when brightness is standardised",
    "preparing#seed": "of the lists of sampled voxels",
    "tracts#num_regions": "regions if there is no atlas file: only to build and export a network",
    "tracts#num_tracts": "tracts if there is no atlas file: only to build and export a network",
    "network_def#num_biomarkers": "K of the K-means; per modality if `per_modality`",
    "network_def#channels": "feature channels of the encoder's levels",
    "network_def#attribute_widths": "layers of the node and edge encoders; the last is the attributes' width",
    "network_def#edge_head": "layers of the projection head of Eq. 1",
    "network_def#bottleneck": "True: the prediction sees a patient through the biomarkers only",
    "network_def#objective": (
        "`contrastive`: Algorithm 1; `multitask`: adds a classifier on <u^T, u^B>; `unimodal`: each encoder is trained "
        "by a classifier of its own alone"
    ),
    "network_def#unimodal": "with `multitask`: each encoder also has a classifier of its own; not in the paper",
    "network_def#graph": "nodes and edges of the population graph: one of Table 1",
    "network_def#brain#projection": "widths of the head g_a; None: 32, then as the other heads",
    "network_def#image#channels": "channels of the convolutions, each followed by a pooling by two",
    "network_def#points#channels": (
        "channels of the convolutions; after each one the farthest half of the points survives"
    ),
    "network_def#brain#channels": "widths of the graph attention layers",
    "network_def#brain#dropout": "dropout of the regions' and tracts' attributes in training",
    "train#class_balance": (
        "True: classes count equally in the loss (IRCL) or in the batches (SSCL); taken back in the logits. "
        "False: plain cross-entropy"
    ),
    "additive#penalty": "of the logistic regression: `l1` (few biomarkers get a weight) or `l2`",
    "additive#scaling": (
        "measures are divided by their `own` standard deviation, or all by a `common` one: then a biomarker that "
        "hardly occurs cannot get a large weight"
    ),
    "additive#covariate_penalty": "penalty of covariates in parts of the biomarkers'; 1: alike, near 0: none",
    "additive#strength": (
        "C of scikit-learn's LogisticRegression, smaller is stronger; None: chosen by cross-validation within the "
        "training patients"
    ),
    "cross_fit#folds": (
        "0: `shares` deals out who trains the encoders and who the answers; else so many folds: all train both, and "
        "the encoders are trained once more for each fold, without it"
    ),
    "datalist#held_out": "set by cross-fitting: the fold that trains nothing; -1: none",
    "train#additive#strength": (
        "C of the additive answer's LogisticRegression, smaller is stronger; None: by cross-validation within the "
        "patients it is fitted to"
    ),
    "edges#fa_widths": "layers of the FA encoder",
    "explanation": "`additive`, `grad_cam`, `layer_cam` or `integrated_gradients`",
    "target_layer": "layer of the network whose output gives Grad-CAM and LayerCAM",
    "class_idx": "class that is explained; None: the predicted one",
    "threshold": "share of a map's maximum from which a pixel belongs to its box",
    "slides": "folder of whole slides or large images to predict instead of patches; None: patches",
    "slide_labels": "CSV with the columns `slide`, `label` (class name, 0 or 1) and, if known, `patient`",
    "train#tiles": "most tiles of a slide at a step, drawn anew each time; None: all",
    "edge_mask#epochs": "steps of GNNExplainer",
    "edge_mask#learning_rate": "step size of GNNExplainer",
    "edge_mask#edge_size": "weight of the mask's size: larger keeps fewer tracts",
    "edge_mask#edge_entropy": "weight of the mask's entropy: larger gives values nearer 0 and 1",
    "edge_mask#threshold": "a tract is kept if its mask is above this",
    "edge_mask#draws": "random choices of as many tracts that the kept ones are compared with",
    "planted#spicules": "phantoms: code in the planted map, class it speaks for (None: a decoy)",
    "planted#mismatch": "likewise",
    "planted#infiltrated_tracts": "likewise",
    "planted#enhancing_rim": "likewise",
    "planted#calcification": "likewise",
    "planted#calcification_instead": "likewise",
    "edges#use_fa": (
        "True: Eq. 1 with FA maps; False: an autoencoder of the tracts' voxels; default True if all patients "
        "have FA maps"
    ),
    "train#pretrained": (
        "checkpoint of the encoder that the stage starts from; None: from scratch; default that of `pretrain`"
    ),
    "preparing#threshold": "probability above which a tract crosses a point",
    "preparing#dilation": "voxels by which tracts are grown before that",
    "train#augmentation": "random changes of the training images; None: none",
    "pretrain#augmentation": "random changes of the training images; None: none",
    "mask#learning_rate": "step size of Adam, in logits q",
}
# by the last part of the id, in whatever section
LAST = {
    "epochs": "epochs",
    "max_epochs": "epochs at most; early stopping may end the stage from `epochs` on",
    "patience": "epochs without a lower loss after which the stage ends, from `epochs` on",
    "batch_size": "items per step, of all processes together",
    "learning_rate": "step size of the optimiser",
    "layer_decay": "factor on the learning rate from each stage of the encoder to the one before it; 1: none",
    "weight_decay": "of the optimiser",
    "decay": "factor on the learning rate every `decay_every` epochs",
    "decay_every": "epochs between two such steps",
    "warmup": "share of the stage's steps over which the learning rate rises from 0; then it falls along a cosine",
    "key_metric": "a handler of MONAI that measures the training batches, such as `ROCAUC`; None: none",
    "save_interval": "epochs between two saves of a running stage",
    "pos_weight": "weight of the positives in the cross-entropy; None: 1",
    "decoupled": "True: the positive pair is left out of the denominator, as printed; False: InfoNCE",
    "optimizer": "the optimiser",
    "scheduler": "how the learning rate changes",
}
# of configs without a `_desc_`
FILES = {
    "train.json": "the default: all stages of a training, at the size for a GPU",
    "evaluate.json": "after `train.json`, with `--run_id evaluate`: predictions and metrics of a trained model",
    "explain.json": "after `train.json`, with `--run_id explain`: what the predictions rest on",
    "inference.json": "alone: predictions of new patients or patches",
    "cpu.json": "a small network: minutes on two cores",
    "paper.json": "the paper's settings",
    "resnet18.json": "a control: MONAI's ResNet18 trained on the same images with the same budget",
}
