"""The smallest model of every module of timm that has a classifier, and an image size that it takes."""

from dataclasses import dataclass
from typing import Any

import timm

CLASSES = 7


@dataclass(frozen=True)
class Family:
    """A module of timm.

    Args:
        module: its name.
        model: the one of its models with the fewest weights.
        millions: of weights.
        side: of the images in pixels, as small as the model takes.
        sized: True if the model is told so when it is made.
    """

    module: str
    model: str
    millions: float
    side: int = 64
    sized: bool = False

    def build(self) -> Any:
        """The model, with random weights."""
        return timm.create_model(
            self.model, num_classes=CLASSES, **({"img_size": self.side} if self.sized else {})
        )


# A tower for images without a classifier.
WITHOUT_CLASSES = {"gemma4_vit": "gemma4_vit_167m_enc"}

FAMILIES = (
    Family("beit", "beit_base_patch16_224", 85.8, sized=True),
    Family("byoanet", "halonet_h1", 7.6, side=256),
    Family("byobnet", "test_byobnet", 0.2),
    Family("cait", "cait_xxs24_224", 11.8, sized=True),
    Family("coat", "coat_tiny", 5.3, sized=True),
    Family("convit", "convit_tiny", 5.5, sized=True),
    Family("convmixer", "convmixer_768_32", 20.3),
    Family("convnext", "test_convnext", 0.2),
    Family("cpubone", "cpubone_nano", 4.9),
    Family("crossvit", "crossvit_tiny_240", 6.7),
    Family("csatv2", "csatv2", 10.7),
    Family("cspnet", "cs3darknet_focus_s", 2.8),
    Family("cspnext", "cspnext_tiny", 2.4),
    Family("davit", "davit_tiny", 27.6),
    Family("deepseek_vit", "deepseek_vit_412m", 411.8, side=112, sized=True),
    Family("deit", "deit_tiny_patch16_224", 5.5, sized=True),
    Family("densenet", "densenet121", 7.0),
    Family("dla", "dla46x_c", 0.8),
    Family("dpn", "dpn48b", 8.3),
    Family("edgenext", "edgenext_xx_small", 1.2),
    Family("efficientformer", "efficientformer_l1", 11.4, side=224),
    Family("efficientformer_v2", "efficientformerv2_s0", 3.2, sized=True),
    Family("efficientnet", "test_efficientnet", 0.1),
    Family("efficientvim", "efficientvim_m1", 5.7),
    Family("efficientvit_mit", "efficientvit_b0", 2.1),
    Family("efficientvit_msra", "efficientvit_m0", 2.2),
    Family("eva", "vit_tiny_patch16_dinov3_qkvb", 5.5),
    Family("fasternet", "fasternet_t0", 2.6),
    Family("fastvit", "fastvit_t8", 3.3),
    Family("focalnet", "focalnet_tiny_srf", 27.7),
    Family("gcvit", "gcvit_xxtiny", 11.5, sized=True),
    Family("ghostnet", "ghostnet_050", 1.3),
    Family("hardcorenas", "hardcorenas_b", 3.9),
    Family("hgnet", "hgnetv2_b0", 4.0),
    Family("hiera", "hiera_tiny_224", 27.1, sized=True),
    Family("hieradet_sam2", "sam2_hiera_tiny", 26.9),
    Family("hrnet", "hrnet_w18_small", 11.2),
    Family("iformer", "iformer_t", 2.6),
    Family("inception_next", "inception_next_atto", 3.2),
    Family("inception_resnet_v2", "inception_resnet_v2", 54.3, side=96),
    Family("inception_v3", "inception_v3", 21.8, side=96),
    Family("inception_v4", "inception_v4", 41.2, side=96),
    Family("lcnetv2", "lcnetv2_small", 2.9),
    Family("levit", "levit_128s", 7.0, sized=True),
    Family("lowformer", "lowformer_b0", 12.5),
    Family("mambaout", "test_mambaout", 0.2),
    Family("maxxvit", "test_coatnet", 0.4, sized=True),
    Family("metaformer", "poolformerv2_s12", 11.4),
    Family("mlp_mixer", "gmlp_ti16_224", 5.7, sized=True),
    Family("mobilenetv3", "lcnet_035", 0.4),
    Family("mobilenetv5", "mobilenetv5_base", 80.6),
    Family("mobilevit", "mobilevit_xxs", 1.0),
    Family("mvitv2", "mvitv2_tiny", 23.4),
    Family("naflexvit", "naflexvit_base_patch16_parfac_gap", 85.7),
    Family("nasnet", "nasnetalarge", 84.7),
    Family("nest", "nest_tiny", 16.7, sized=True),
    Family("nextvit", "nextvit_small", 30.7),
    Family("nfnet", "test_nfnet", 0.2),
    Family("pit", "pit_ti_224", 4.6, sized=True),
    Family("pnasnet", "pnasnet5large", 81.8),
    Family("pvt_v2", "pvt_v2_b0", 3.4),
    Family("qwen3_vit", "qwen3_vit_88m", 87.4),
    Family("rdnet", "rdnet_tiny", 22.8),
    Family("regnet", "regnetx_002", 2.3),
    Family("repghost", "repghostnet_050", 1.0),
    Family("repvit", "repvit_m1", 4.7),
    Family("res2net", "res2next50", 22.6),
    Family("resnest", "resnest14d", 8.6),
    Family("resnet", "test_resnet", 0.4),
    Family("resnetv2", "resnetv2_18", 11.2),
    Family("rexnet", "rexnet_100", 3.5),
    Family("selecsls", "selecsls42", 29.1),
    Family("senet", "legacy_seresnet18", 11.3),
    Family("sequencer", "sequencer2d_s", 27.3),
    Family("shvit", "shvit_s1", 6.0),
    Family("sknet", "skresnet18", 11.4),
    Family("starnet", "starnet_s050", 0.4),
    Family("swiftformer", "swiftformer_xs", 3.0),
    Family("swin_transformer", "swin_tiny_patch4_window7_224", 27.5, sized=True),
    Family("swin_transformer_v2", "swinv2_tiny_window8_256", 27.6, sized=True),
    Family("swin_transformer_v2_cr", "swinv2_cr_tiny_224", 27.6, sized=True),
    Family("tiny_vit", "tiny_vit_5m_224", 5.1),
    Family("tnt", "tnt_s_legacy_patch16_224", 23.4, sized=True),
    Family("tresnet", "tresnet_m", 29.4),
    Family("twins", "twins_svt_small", 23.6),
    Family("vgg", "vgg11", 128.8),
    Family("visformer", "visformer_tiny", 9.9, sized=True),
    Family("vision_transformer", "test_vit", 0.3),
    Family("vision_transformer_hybrid", "vit_tiny_r_s16_p8_224", 6.1, sized=True),
    Family("vision_transformer_relpos", "test_vit_relpos", 0.8, sized=True),
    Family("vision_transformer_sam", "samvit_base_patch16_224", 85.7),
    Family("vitamin", "vitamin_small_224", 21.9, sized=True),
    Family("volo", "volo_d1_224", 25.9, sized=True),
    Family("vovnet", "ese_vovnet19b_slim_dw", 1.4),
    Family("xception", "legacy_xception", 20.8),
    Family("xception_aligned", "xception41p", 24.9),
    Family("xcit", "xcit_nano_12_p8_224", 2.9),
)
