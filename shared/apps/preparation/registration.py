"""Registration to MNI152 and bias field correction: ANTs (antspyx), or SimpleITK's affine; imported where used.

Rigid registration of a patient's sequences, N4 (Tustison 2010), and the way to the template: SyN (Avants 2008) at 2 mm
with the lesion left out of the metric, so that it is neither squeezed nor pulled and keeps its volume.
"""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from shared.data.volumes import Volume
from shared.errors import DataError

INSTALL = "pip install antspyx (ANTs SyN, the default), or pip install SimpleITK (its affine registration only)"
SHRINK = (4, 2, 1)  # levels of SimpleITK's registration
SAMPLES = 100_000  # voxels that its metric sees at a level
N4_TOLERANCE = 1e-3  # SimpleITK's; antspyx's own 1e-7 takes many times as long
LIFT_TAIL = 0.005  # of the mask's values, which may stay below 0 where an image is lifted for N4
SYN = (40, 20, 10)  # iterations at 8, 4 and 2 mm
METHODS = ("auto", "syn", "ants-affine", "sitk-affine")


class Registration(Protocol):
    """What both libraries are asked to do. A warp is theirs; ``apply`` takes several, the first made first."""

    method: str
    note: str

    def rigid(self, fixed: Volume, moving: Volume) -> Any:
        """Rigid registration by mutual information."""

    def to_template(self, template: Volume, moving: Volume, metric_mask: Any) -> Any:
        """Registration of a brain to the template's; the metric sees the voxels of ``metric_mask`` of ``moving``."""

    def apply(
        self, warps: Sequence[Any], moving: Volume, fixed: Volume, *, nearest: bool = False, inverse: bool = False
    ) -> Volume:
        """``moving`` on the grid of ``fixed``, 0 outside; ``inverse``: led back through all the warps."""

    def n4(self, volume: Volume, mask: Any) -> Volume:
        """A volume without its bias field, estimated within ``mask``."""


def _orthogonal(volume: Volume) -> tuple[list[float], list[float], Any]:
    """Origin, spacing and direction cosines in ITK's LPS."""
    import numpy as np

    lps = np.diag([-1.0, -1.0, 1.0])
    matrix = lps @ volume.affine[:3, :3]
    spacing = np.linalg.norm(matrix, axis=0)
    direction = matrix / spacing
    if np.abs(direction.T @ direction - np.eye(3)).max() > 1e-2:
        raise DataError("the image's axes are not at right angles (its affine has shear); resample it to such a grid")
    left, _, right = np.linalg.svd(direction)
    return (lps @ volume.affine[:3, 3]).tolist(), spacing.tolist(), left @ right


def _around(mask: Any, affine: Any, margin: int = 4) -> tuple[tuple[slice, ...], Any]:
    """The box around a mask and a few voxels, and the affine of what it cuts out."""
    import numpy as np
    from scipy.ndimage import find_objects

    found = find_objects(np.asarray(mask, np.uint8))[0]
    box = tuple(slice(max(side.start - margin, 0), side.stop + margin) for side in found)
    moved = np.array(affine, float)
    moved[:3, 3] += moved[:3, :3] @ [side.start for side in box]
    return box, moved


def lifted_n4(n4: Callable[[Any, Volume, Any], Volume]) -> Callable[[Any, Volume, Any], Volume]:
    """N4 of images with values below 0, as standardised ones have: it takes logarithms, and would leave them alone.

    They are lifted until all but ``LIFT_TAIL`` of the mask's values are positive (the lowest of these at a hundredth of
    the range), corrected, and lowered again; images without such values go through as they are.
    """
    import functools

    @functools.wraps(n4)
    def lifted(self: Any, volume: Volume, mask: Any) -> Volume:
        import numpy as np

        array, inside = np.asarray(volume.array, np.float32), np.asarray(mask) > 0
        if array[inside].min() >= 0:
            return n4(self, volume, mask)
        low, high = np.percentile(array[inside], (100 * LIFT_TAIL, 100 * (1 - LIFT_TAIL)))
        least = max(float(high - low), 1e-6) / 100
        lift = least - float(low)
        raised = np.maximum(array + lift, least)  # what lies lower still would weigh on the field
        done = n4(self, Volume(np.where(inside, raised, 0), volume.affine), mask)
        gain = np.where(inside, done.array / np.where(inside, raised, 1), 1)
        return Volume(np.where(inside, (array + lift) * gain - lift, array).astype(np.float32), volume.affine)

    return lifted


def _fixed(seed: int) -> int:
    return max(1, seed + 1)  # 0 draws by the clock, in ANTs and in SimpleITK


class AntsRegistration:
    """ANTs: rigid, affine, SyN.

    Args:
        affine_only: leave out the deformation.
        seed: of the samples that the metric draws.
    """

    def __init__(self, affine_only: bool = False, seed: int = 0):
        self.ants = _load("ants")
        self.method = "ANTs affine" if affine_only else "ANTs SyN, lesion excluded"
        self.note = ""
        self._kind, self._seed = "Affine" if affine_only else "SyN", _fixed(seed)
        self._files = tempfile.TemporaryDirectory(prefix="registration_")
        self._count = 0

    def _image(self, volume: Volume) -> Any:
        import numpy as np

        origin, spacing, direction = _orthogonal(volume)
        array = np.ascontiguousarray(volume.array, np.float32)
        return self.ants.from_numpy(array, origin=origin, spacing=spacing, direction=direction)

    def _register(self, fixed: Volume, moving: Volume, kind: str, **options: Any) -> list[str]:
        self._count += 1
        prefix = f"{self._files.name}/{self._count}_"
        found = self.ants.registration(
            self._image(fixed),
            self._image(moving),
            kind,
            outprefix=prefix,
            random_seed=self._seed,
            **options,
        )
        return found["fwdtransforms"]

    def rigid(self, fixed: Volume, moving: Volume) -> list[str]:
        """Files of the transform."""
        return self._register(fixed, moving, "Rigid")

    def to_template(self, template: Volume, moving: Volume, metric_mask: Any) -> list[str]:
        """Files of the transforms."""
        mask = self._image(Volume(metric_mask, moving.affine))
        return self._register(template, moving, self._kind, moving_mask=mask, mask_all_stages=True, reg_iterations=SYN)

    def apply(
        self, warps: Sequence[list[str]], moving: Volume, fixed: Volume, *, nearest: bool = False, inverse: bool = False
    ) -> Volume:
        """``moving`` on the grid of ``fixed``."""
        files = [file for warp in reversed(warps) for file in warp]  # ANTs applies the last one first
        if inverse:  # a matrix is inverted as it is read, a deformation has a file for it
            files = [file.replace("Warp.nii.gz", "InverseWarp.nii.gz") for file in reversed(files)]
        done = self.ants.apply_transforms(
            self._image(fixed),
            self._image(moving),
            files,
            interpolator="nearestNeighbor" if nearest else "linear",
            whichtoinvert=[inverse and file.endswith(".mat") for file in files],
        )
        return Volume(done.numpy(), fixed.affine)

    @lifted_n4
    def n4(self, volume: Volume, mask: Any) -> Volume:
        """Without its bias field."""
        import numpy as np

        box, affine = _around(mask, volume.affine)
        part, inside = Volume(volume.array[box], affine), Volume(np.asarray(mask)[box], affine)
        corrected = self.ants.n4_bias_field_correction(
            self._image(part),
            mask=self._image(inside),
            shrink_factor=4,
            convergence={"iters": [50] * 4, "tol": N4_TOLERANCE},
        )
        array = np.asarray(volume.array, np.float32).copy()
        array[box] = corrected.numpy()
        return Volume(array, volume.affine)


class SitkRegistration:
    """SimpleITK: rigid and affine by mutual information; it has no registration equal to SyN."""

    def __init__(self, seed: int = 0):
        self.sitk = _load("SimpleITK")
        self.method = "SimpleITK affine"
        self.note = "affine only: shapes of brain and tumour are not adapted to the template's; antspyx has SyN"
        self._seed = _fixed(seed)

    def _image(self, volume: Volume) -> Any:
        import numpy as np

        origin, spacing, direction = _orthogonal(volume)
        array = volume.array.astype(np.uint8 if volume.array.dtype == bool else np.float32)
        image = self.sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
        image.SetOrigin(origin)
        image.SetSpacing(spacing)
        image.SetDirection(direction.ravel().tolist())
        return image

    def _volume(self, image: Any, affine: Any) -> Volume:
        return Volume(self.sitk.GetArrayFromImage(image).transpose(2, 1, 0), affine)

    def _register(self, fixed: Volume, moving: Volume, start: Any, mask: Any = None) -> Any:
        sitk = self.sitk
        fixed, moving = self._image(fixed), self._image(moving)
        start = sitk.CenteredTransformInitializer(fixed, moving, start, sitk.CenteredTransformInitializerFilter.MOMENTS)
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(32)
        method.SetMetricSamplingStrategy(method.RANDOM)
        voxels = [fixed.GetNumberOfPixels() / shrink**3 for shrink in SHRINK]
        method.SetMetricSamplingPercentagePerLevel([min(1.0, SAMPLES / count) for count in voxels], self._seed)
        if mask is not None:
            method.SetMetricMovingMask(mask)
        method.SetInterpolator(sitk.sitkLinear)
        # steps that shorten: a fixed rate walks away from a start that is right already
        method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 200, relaxationFactor=0.5)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel(SHRINK)
        method.SetSmoothingSigmasPerLevel([2, 1, 0])
        method.SetInitialTransform(start, inPlace=False)
        method.SetNumberOfThreads(1)  # sums of several threads differ in their last digits
        return method.Execute(fixed, moving)

    def rigid(self, fixed: Volume, moving: Volume) -> Any:
        """The transform."""
        return self._register(fixed, moving, self.sitk.Euler3DTransform())

    def to_template(self, template: Volume, moving: Volume, metric_mask: Any) -> Any:
        """The transform."""
        import numpy as np

        mask = self._image(Volume(np.asarray(metric_mask, bool), moving.affine))
        return self._register(template, moving, self.sitk.AffineTransform(3), mask)

    def apply(
        self, warps: Sequence[Any], moving: Volume, fixed: Volume, *, nearest: bool = False, inverse: bool = False
    ) -> Volume:
        """``moving`` on the grid of ``fixed``."""
        sitk = self.sitk
        # a composite applies the last one first, and it maps the fixed grid's points into the moving image
        chain = sitk.CompositeTransform(3)
        for warp in reversed(warps) if inverse else warps:
            chain.AddTransform(warp.GetInverse() if inverse else warp)
        how = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
        done = sitk.Resample(self._image(moving), self._image(fixed), chain, how, 0.0, sitk.sitkFloat32)
        return self._volume(done, fixed.affine)

    @lifted_n4
    def n4(self, volume: Volume, mask: Any) -> Volume:
        """Without its bias field."""
        import numpy as np

        sitk = self.sitk
        image, inside = self._image(volume), self._image(Volume(np.asarray(mask, bool), volume.affine))
        factor = [4 if n >= 32 else 1 for n in image.GetSize()]
        correct = sitk.N4BiasFieldCorrectionImageFilter()
        correct.SetMaximumNumberOfIterations([50, 50, 50, 50])
        correct.SetConvergenceThreshold(N4_TOLERANCE)
        correct.Execute(sitk.Shrink(image, factor), sitk.Shrink(inside, factor))
        field = self._volume(correct.GetLogBiasFieldAsImage(image), volume.affine).array
        return Volume(volume.array / np.exp(field), volume.affine)


def _load(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise DataError(
            f"{package} is not installed; registration and N4 need one of these: {INSTALL}; "
            "images that lie in MNI152 space already go without (--already-mni --no-n4)"
        ) from error


def choose_registration(method: str = "auto", seed: int = 0) -> Registration:
    """The registration a user asked for; ``auto``: SyN where antspyx is installed, else SimpleITK's affine.

    Args:
        method: one of ``METHODS``.
        seed: of the metric's samples.

    Raises:
        DataError: what it needs is not installed; the message names both packages.
    """
    if method not in METHODS:
        raise DataError(f"registration must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "auto":
        method = "syn" if importlib.util.find_spec("ants") else "sitk-affine"
    if method == "sitk-affine":
        return SitkRegistration(seed)
    return AntsRegistration(affine_only=method == "ants-affine", seed=seed)


def dice(first: Any, second: Any) -> float:
    """Twice the overlap of two masks over the sum of their sizes.

    Example:
        >>> import numpy as np
        >>> dice(np.array([1, 1, 0, 0]), np.array([1, 0, 0, 0]))
        0.666...
    """
    import numpy as np

    first, second = np.asarray(first) != 0, np.asarray(second) != 0
    return 2.0 * float((first & second).sum()) / max(float(first.sum() + second.sum()), 1.0)
