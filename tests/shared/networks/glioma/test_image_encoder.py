import copy

import pytest
import torch
from torch import nn

from shared.networks import ImageEncoder
from tests.support.tiny_brains import lively


def small(size=16, **settings):
    torch.manual_seed(0)
    return lively(ImageEncoder(2, size, channels=(4, 8), hidden=(12,), embedding_dim=5, **settings))


def images(batch=3, size=16):
    return torch.rand(batch, 2, size, size, size, generator=torch.Generator().manual_seed(1))


def test_the_papers_encoder_has_seven_million_parameters():
    with torch.device("meta"):
        net, small_crop, pooled = ImageEncoder(4, 120), ImageEncoder(4, 64), ImageEncoder(4, 120, global_pool=True)
    convolutions = [block.conv.out_channels for block in net.blocks]
    assert convolutions == [64, 128, 128, 256, 256]
    assert [layer.out_features for layer in net.head if isinstance(layer, nn.Linear)] == [512, 256, 32]
    assert net.head[0].in_features == 256 * 3**3 and small_crop.head[0].in_features == 256 * 2**3
    assert pooled.head[0].in_features == 256
    assert sum(parameter.numel() for parameter in net.parameters()) == 7_005_344


def test_it_is_convolution_normalisation_relu_pooling_in_the_papers_order():
    net, x = small().eval(), images()
    plain = x
    for block in net.blocks:
        plain = nn.functional.max_pool3d(block.norm(block.conv(plain)).relu(), 2)
    torch.testing.assert_close(net(x), net.head(plain.flatten(1)))
    pooled = small(global_pool=True).eval()
    for number, block in enumerate(pooled.blocks):
        block.load_state_dict(net.blocks[number].state_dict())
    torch.testing.assert_close(pooled(x), pooled.head(plain.flatten(2).mean(dim=2)))


def test_memory_order_and_checkpointing_change_nothing_but_speed_and_memory():
    plain, x = small().train(), images()
    for settings in ({"channels_last": True}, {"checkpointing": True}):
        net = small(**settings).train()
        net.load_state_dict(copy.deepcopy(plain.state_dict()))
        reference = copy.deepcopy(plain)
        for other in (net, reference):
            other(x).square().sum().backward()
        for (name, found), expected in zip(net.named_parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad, msg=f"{settings} {name}", rtol=1e-3, atol=1e-5)
        # running statistics, too: recomputing a block must not count its batch twice
        for found, expected in zip(net.buffers(), reference.buffers(), strict=True):
            torch.testing.assert_close(found, expected)
    assert small(channels_last=True).blocks[1].conv.weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_bfloat16_is_used_where_it_is_asked_for_and_gives_float32():
    seen = []
    for net in (small(bf16=True), small()):
        net.eval().blocks[1].conv.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        assert net(images()).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert net(images()).dtype == torch.float32
    assert seen == [torch.bfloat16, torch.float32, torch.bfloat16]
    torch.testing.assert_close(small(bf16=True).eval()(images()), small().eval()(images()), rtol=0.1, atol=0.05)


def test_a_patient_in_a_batch_is_encoded_as_alone():
    net, x = small().eval(), images()
    torch.testing.assert_close(net(x), torch.cat([net(one[None]) for one in x]), rtol=1e-4, atol=1e-5)
    assert (net(x)[0] - net(x)[1]).abs().max() > 1e-3


def test_refusals():
    with pytest.raises(ValueError, match="at least 32 voxels a side, got 24"):
        ImageEncoder(4, 24)
    with pytest.raises(ValueError, match=r"made for images \[2, 16, 16, 16\].*got \[3, 16, 16, 16\]"):
        small()(torch.rand(1, 3, 16, 16, 16))
