import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import nn
from torch.utils.data import DataLoader

from shared.data import PatchRows, collate_patches
from shared.data.patches.resizing import resize_images
from shared.engines import PreparePatches, PrepareViews
from shared.transforms import ViewAugmentation

CPU = torch.device("cpu")


def batch_of(count=4, size=16):
    image = torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(0)).byte()
    soft = torch.tensor([[0.25, 0.75]]).repeat(count, 1)
    return {"image": image, "row": torch.arange(count), "label": torch.arange(count) % 2, "soft_label": soft}


def test_two_different_views_of_every_image_first_all_then_all_again():
    batch = batch_of()
    views, source = PrepareViews(ViewAugmentation(12, seed=1), channels_last=True)(batch, CPU, False)
    assert views.shape == (8, 3, 12, 12) and views.is_contiguous(memory_format=torch.channels_last)
    assert source.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert ((views[:4] - views[4:]).flatten(1).abs().amax(1) > 0.02).all()
    assert views.min() >= 0 and views.max() <= 1
    # without changes, both views are the image that source names
    still, source = PrepareViews(lambda image: image / 255)(batch, CPU)
    assert torch.equal(still, batch["image"][source] / 255) and still.is_contiguous()


def test_views_repeat_by_seed_and_differ_from_call_to_call():
    batch, prepare = batch_of(), PrepareViews(ViewAugmentation(12, seed=1))
    first, second = prepare(batch, CPU)[0], prepare(batch, CPU)[0]
    assert not torch.equal(first, second)
    again = PrepareViews(ViewAugmentation(12, seed=1))
    assert torch.equal(again(batch, CPU)[0], first) and torch.equal(again(batch, CPU)[0], second)


def test_patches_are_scaled_and_resized_with_either_kind_of_label():
    batch = batch_of()
    image, label = PreparePatches(channels_last=True)(batch, CPU, False)
    assert torch.equal(image, batch["image"] / 255) and torch.equal(label, batch["label"])
    assert image.is_contiguous(memory_format=torch.channels_last) and image.dtype == torch.float32
    image, label = PreparePatches(size=7, soft_labels=True)(batch, CPU)
    assert torch.equal(label, batch["soft_label"])
    torch.testing.assert_close(image, resize_images(batch["image"].float(), 7) / 255)
    assert (image * 255 - (image * 255).round()).abs().max() > 0.1  # not by way of whole grey values
    del batch["label"]
    assert PreparePatches()(batch, CPU)[1] is None


def test_floats_are_taken_as_they_are():
    real = batch_of()["image"] / 255
    assert torch.equal(PreparePatches()({"image": real}, CPU)[0], real)


def test_augmentation_decides_the_size_in_training():
    batch = batch_of()
    image, label = PreparePatches(ViewAugmentation(12, seed=2), size=12)(batch, CPU)
    assert torch.equal(image, ViewAugmentation(12, seed=2)(batch["image"])) and torch.equal(label, batch["label"])
    with pytest.raises(ValueError, match="images have side 12, but size asks for 16; make them equal"):
        PreparePatches(ViewAugmentation(12), size=16)


class Cache:
    """What PatchRows reads of a cache, without files."""

    def __init__(self, batch):
        self.images, self.labels, self.soft_labels = batch["image"], batch["label"], batch["soft_label"]

    def __len__(self):
        return len(self.images)


@pytest.mark.parametrize("views", [True, False])
def test_a_supervised_trainer_runs_on_them(views):
    seen = []

    class Loss(nn.Module):
        def forward(self, output, target):
            seen.append((output.shape, target))
            return output.square().mean()

    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    prepare = PrepareViews(ViewAugmentation(12)) if views else PreparePatches(size=12)
    trainer = SupervisedTrainer(
        device=CPU,
        max_epochs=1,
        train_data_loader=DataLoader(PatchRows(Cache(batch_of())), batch_size=2, collate_fn=collate_patches),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=Loss(),
        prepare_batch=prepare,
        decollate=False,
    )
    trainer.run()
    assert [shape[0] for shape, _ in seen] == ([4, 4] if views else [2, 2])
    assert [target.tolist() for _, target in seen] == ([[0, 1, 0, 1]] * 2 if views else [[0, 1]] * 2)
