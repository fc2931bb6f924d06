"""The registry: counted parameters against the studies' table, choices and their refusals, what each option does."""

from __future__ import annotations

import pytest
import torch

from mammo_runtime.errors import UsageError
from mammo_train import models
from mammo_train.models import listing
from mammo_train.models.critic import MultiscaleCritics, SegANCritic
from mammo_train.models.mobilenetv2 import BRIDGE_CHANNELS, SKIP_CHANNELS, MobileNetV2Encoder
from mammo_train.models.unetpp import pruned
from network_cases import small

# Colour L, colour S, one channel L, one channel S, colour tiny.
FIVE = {
    "unet": (31_037_633, 7_763_041, 31_036_481, 7_762_465, 486_553),
    "msanet": (31_037_633, 7_763_041, 31_036_481, 7_762_465, 486_553),
    "attention_unet": (31_388_201, 7_851_289, 31_387_049, 7_850_713, 492_301),
    "dense_unet": (19_253_697, 4_815_585, 19_252_545, 4_815_009, 301_785),
    "unetpp": (36_622_337, 9_159_681, 36_621_185, 9_159_105, 574_017),
    "connected_unet": (80_075_841, 20_028_961, 80_074_689, 20_028_385, 1_255_561),
    "connected_dense_unet": (70_667_841, 17_675_041, 70_666_689, 17_674_465, 1_107_721),
    "connected_attention_unet": (80_776_977, 20_205_457, 80_775_825, 20_204_881, 1_267_057),
    "connected_unetpp": (98_424_961, 24_614_977, 98_423_809, 24_614_401, 1_541_713),
}
ONE_SIZE = {
    ("bcss_unet_resnet34", 21, 3): 24_439_269,
    ("bcss_unet_resnet34", 1, 3): 24_436_369,
    ("bcss_unet_resnet34", 1, 1): 24_430_097,
    ("busi_unet", 1, 1): 31_030_593,
    ("vgg16_busi", 3, 3): 134_272_835,
    ("cobos_vgg", 1, 1): 2_906_681,
    ("cobos_dilated", 1, 1): 894_017,
    ("mobilenetv2_resunet", 1, 3): 5_697_969,
    ("mobilenetv2_unet", 1, 3): 5_387_217,
    ("resunet", 1, 3): 8_223_809,
    ("resunet", 1, 1): 8_222_529,
    ("smp:Unet/mobilenet_v2", 1, 3): 6_628_945,
    ("smp:Unet/mobilenet_v2", 1, 1): 6_628_369,
    ("smp:UnetPlusPlus/mobilenet_v2", 1, 3): 6_824_721,
    ("smp:Linknet/mobilenet_v2", 1, 3): 4_319_859,
    ("smp:FPN/mobilenet_v2", 1, 3): 4_215_425,
    ("smp:DeepLabV3Plus/mobilenet_v2", 1, 3): 4_378_513,
    ("smp:PAN/mobilenet_v2", 1, 3): 2_416_552,
    ("smp:pspnet/mobilenet_v2", 1, 3): 2_263_353,
    ("smp:UPerNet/mobilenet_v2", 1, 3): 13_019_953,
    ("smp:Segformer/mit_b0", 1, 3): 3_714_401,
}
OPTIONS = {
    ("connected_unetpp", "L", "aspp", True): 91_245_249,
    ("connected_unetpp", "S", "aspp", True): 22_822_241,
    ("connected_unetpp", "tiny", "aspp", True): 1_430_489,
    ("connected_unet", "L", "aspp", False): 68_379_137,
    ("connected_dense_unet", "L", "aspp", False): 44_811_265,
    ("connected_attention_unet", "S", "aspp", False): 17_278_577,
    # The published code: biases in every convolution, no norm between the halves.
    ("connected_unet", "S", "norm_order", "published"): 20_036_545,
    ("connected_unet", "L", "norm_order", "published"): 80_091_009,
}


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", FIVE)
def test_counts_of_study_000(name: str) -> None:
    choices = [(3, "L"), (3, "S"), (1, "L"), (1, "S"), (3, "tiny")]
    assert tuple(models.count_parameters(name, channels=c, width=w) for c, w in choices) == FIVE[name]


@pytest.mark.parametrize(("name", "classes", "channels"), ONE_SIZE)
def test_counts_of_networks_in_one_size(name: str, classes: int, channels: int) -> None:
    assert models.count_parameters(name, classes, channels) == ONE_SIZE[name, classes, channels]


@pytest.mark.parametrize(("name", "width", "option", "value"), OPTIONS)
def test_counts_with_options(name: str, width: str, option: str, value: object) -> None:
    assert models.count_parameters(name, width=width, **{option: value}) == OPTIONS[name, width, option, value]


def test_vgg_with_a_pooled_head_is_small_enough_for_a_device() -> None:
    assert models.count_parameters("vgg16_busi", head="pool") == 14_716_227
    with torch.no_grad():
        assert small("vgg16_busi", head="pool").eval()(torch.zeros(1, 3, 96, 64)).shape == (1, 3)
    with pytest.raises(UsageError, match=r"takes 224x224, not 96x64; give --size 224x224 or build .* head=pool"):
        small("vgg16_busi")(torch.zeros(1, 3, 96, 64))


def test_critics_have_the_studys_size_and_stand_beside_the_network() -> None:
    assert parameters(MultiscaleCritics(4)) == 3 * 2_765_761
    assert parameters(MultiscaleCritics(2)) == 3 * 2_763_713
    names = small("msanet").state_dict()
    assert set(names) == set(small("unet").state_dict())
    assert not any("critic" in name for name in names)


def test_critics_judge_three_scales() -> None:
    critics = MultiscaleCritics(4, width=(4, 4, 8, 8))
    maps = critics(torch.rand(2, 3, 64, 64), torch.rand(2, 1, 64, 64))
    assert [tuple(m.shape) for m in maps] == [(2, 1, 5, 5), (2, 1, 3, 3), (2, 1, 2, 2)]
    sum(m.sum() for m in maps).backward()
    assert all(p.grad is not None for p in critics.parameters())


def test_segan_critic_sees_nothing_outside_the_mask() -> None:
    torch.manual_seed(0)
    critic = SegANCritic(3, layers=((4, 7), (4, 5), (4, 4), (4, 4), (4, 4), (4, 3)))
    image, mask = torch.rand(2, 3, 64, 64), (torch.rand(2, 1, 64, 64) > 0.5).float()
    changed = image + torch.rand(2, 3, 64, 64) * (1 - mask)
    assert torch.equal(critic(image, mask), critic(changed, mask))
    assert not torch.allclose(critic(image, mask), critic(image, 1 - mask))
    critic.clamp(0.01)
    assert max(float(p.detach().abs().max()) for p in critic.parameters()) <= 0.01 + 1e-8


def test_a_pruned_unetpp_answers_as_the_head_it_keeps() -> None:
    torch.manual_seed(0)
    network = small("unetpp", deep_supervision=True)
    images = torch.rand(2, 3, 32, 32)
    heads = network(images)
    assert len(heads) == 4
    network.eval()
    with torch.no_grad():
        assert network(images).shape == (2, 1, 32, 32)
        network.heads["4"] = network.heads["2"]
        network.nest.forward, whole = (lambda first: [row[:3] for row in whole(first)]), network.nest.forward
        expected = network(images)
    part = small("unetpp", deep_supervision=True, columns=2).eval()
    part.load_state_dict(pruned(network.state_dict(), 2))
    with torch.no_grad():
        assert torch.equal(part(images), expected)
    assert parameters(part) < parameters(network) / 4
    with pytest.raises(UsageError, match="no head on column 2"):
        pruned(small("unetpp").state_dict(), 2)
    with pytest.raises(UsageError, match="1 to 4 columns, not 5"):
        small("unetpp", columns=5)


def test_busi_unet_reproduces_the_studys_output_behind_a_sigmoid() -> None:
    torch.manual_seed(0)
    network, plain = small("busi_unet", final="relu").eval(), small("busi_unet").eval()
    plain.load_state_dict(network.state_dict())
    plain.head.weight.data *= 20
    network.load_state_dict(plain.state_dict())
    image = torch.rand(1, 1, 32, 32)
    probability = torch.sigmoid(network(image))
    assert torch.allclose(probability, plain(image).clamp(0.001, 0.999), atol=1e-5)
    probability.sum().backward()
    assert network.head.weight.grad is not None
    with pytest.raises(UsageError, match="logits, relu, not 'softmax'"):
        small("busi_unet", final="softmax")


@pytest.mark.parametrize("up", ["bilinear", "nearest"])
def test_up_sampling_without_transposed_convolutions(up: str) -> None:
    network = small("attention_unet", up=up).eval()
    assert not any(isinstance(m, torch.nn.ConvTranspose2d) for m in network.modules())
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 32, 48)).shape == (1, 1, 32, 48)


def test_encoder_gives_skips_and_bridge_at_the_studys_scales() -> None:
    assert parameters(MobileNetV2Encoder()) == 1_811_712
    with torch.no_grad():
        taps = MobileNetV2Encoder().eval()(torch.zeros(1, 3, 64, 96))
    assert [tuple(t.shape[1:]) for t in taps] == [
        (SKIP_CHANNELS[0], 32, 48),
        (SKIP_CHANNELS[1], 16, 24),
        (SKIP_CHANNELS[2], 8, 12),
        (SKIP_CHANNELS[3], 4, 6),
        (BRIDGE_CHANNELS, 2, 3),
    ]


@pytest.mark.parametrize(
    ("name", "choices", "message"),
    [
        ("unet9000", {}, "unknown model 'unet9000'; known: mobilenetv2_resunet, .*smp:<arch>/<encoder>"),
        ("unet", {"width": "XL"}, "unet has no width 'XL'; it has L, S, tiny"),
        ("unet", {"depth": 3}, "unet has no option depth; it has up"),
        ("unet", {"up": "magic"}, "one of transposed, bilinear, nearest, not 'magic'"),
        ("connected_unet", {"norm_order": "x"}, "one of conv_norm_relu, published, not 'x'"),
        ("smp:Unet", {}, "names no encoder; write smp:<arch>/<encoder>"),
        ("smp:Nyet/resnet34", {}, "no architecture 'Nyet'; it has Unet, UnetPlusPlus"),
        ("smp:Unet/resnet35", {}, "no encoder 'resnet35'; it has resnet18, resnet34"),
        ("smp:Unet/tu-nothing", {}, "cannot build Unet on tu-nothing"),
    ],
)
def test_a_wrong_choice_is_refused_with_what_exists(name: str, choices: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        models.build(name, **choices)  # type: ignore[arg-type]


def test_classes_set_the_number_of_outputs() -> None:
    with torch.no_grad():
        assert models.build("mobilenetv2_resunet", 4, 1).eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 4, 32, 32)


def test_listing_counts_every_width() -> None:
    chosen = {name: models.ARCHITECTURES[name] for name in ("msanet", "vgg16_busi")}
    generator, classifier = listing.model_rows(chosen)
    assert set(generator) - set(classifier) == {"critics"}
    assert generator["critics"] == {"count": 3, "parameters": 2_765_761}
    assert generator["parameters"] == {"L": 31_037_633, "S": 7_763_041, "tiny": 486_553}
    assert generator["widths"]["tiny"] == [8, 16, 32, 64, 128]
    assert (generator["default_width"], generator["options"]) == ("L", {"up": "transposed"})
    assert (classifier["seed"], classifier["task"], classifier["outputs"]) == ("002", "classification", 3)
    assert classifier["input"] == {"channels": 3, "height": 224, "width": 224}
    heading, first, second = listing.table_lines([generator, classifier])
    assert heading.split() == list(listing.COLUMNS)
    assert "L 31,037,633, S 7,763,041, tiny 486,553 (+ 3 critics x 2,765,761)" in first
    assert second.split()[:4] == ["vgg16_busi", "002", "3x224x224", "3"]
    assert listing.table_lines([classifier], heading=False)[0].startswith("vgg16_busi  002")
