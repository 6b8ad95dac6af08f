"""Whole vision models in Flax NNX with the attention of `flax_attn`, which load timm's weights.

`MODELS` holds them by timm's names. Images are `[B, H, W, 3]`. To load a trained model:

    import timm
    from flax import nnx
    from vision_models import MODELS, load_timm

    theirs = timm.create_model("seresnet50", pretrained=True)
    ours = MODELS["seresnet50"](rngs=nnx.Rngs(0))
    load_timm(ours, theirs.state_dict())
    ours.eval()

`python examples/compare_with_timm.py seresnet50` does this and compares the logits. A ResNet can
have any attention: `resnet18(attention=flax_attn.nnx.BAM, rngs=nnx.Rngs(0))`.
"""

from vision_models.attention import ATTENTION as ATTENTION
from vision_models.botnet import botnet26t as botnet26t
from vision_models.coatnet import coatnet_nano as coatnet_nano
from vision_models.coatnet import coatnet_test as coatnet_test
from vision_models.convert import load_timm as load_timm
from vision_models.efficientnet import EfficientNetB0 as EfficientNetB0
from vision_models.focalnet import focalnet_tiny as focalnet_tiny
from vision_models.gcresnet import gcresnet33ts as gcresnet33ts
from vision_models.halonet import halonet26t as halonet26t
from vision_models.lambda_resnet import lambda_resnet26t as lambda_resnet26t
from vision_models.maxvit import maxvit_nano as maxvit_nano
from vision_models.maxvit import maxvit_test as maxvit_test
from vision_models.mobilenet_v3 import mobilenetv3_large as mobilenetv3_large
from vision_models.mobilenet_v3 import mobilenetv3_small as mobilenetv3_small
from vision_models.mobilevit_v2 import mobilevitv2_050 as mobilevitv2_050
from vision_models.pvt_v2 import pvt_v2_b0 as pvt_v2_b0
from vision_models.resnest import resnest14d as resnest14d
from vision_models.resnet import ecaresnet26t as ecaresnet26t
from vision_models.resnet import resnet18 as resnet18
from vision_models.resnet import resnet50 as resnet50
from vision_models.resnet import seresnet18 as seresnet18
from vision_models.resnet import seresnet50 as seresnet50
from vision_models.sknet import skresnet18 as skresnet18
from vision_models.swin import swin_tiny as swin_tiny
from vision_models.vit import vit_tiny as vit_tiny
from vision_models.volo import volo_d1 as volo_d1
from vision_models.xcit import xcit_nano as xcit_nano

MODELS = {
    "botnet26t_256": botnet26t,
    "coatnet_nano_rw_224": coatnet_nano,
    "ecaresnet26t": ecaresnet26t,
    "efficientnet_b0": EfficientNetB0,
    "focalnet_tiny_srf": focalnet_tiny,
    "gcresnet33ts": gcresnet33ts,
    "halonet26t": halonet26t,
    "lambda_resnet26t": lambda_resnet26t,
    "maxvit_nano_rw_256": maxvit_nano,
    "mobilenetv3_large_100": mobilenetv3_large,
    "mobilenetv3_small_100": mobilenetv3_small,
    "mobilevitv2_050": mobilevitv2_050,
    "pvt_v2_b0": pvt_v2_b0,
    "resnest14d": resnest14d,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "seresnet18": seresnet18,
    "seresnet50": seresnet50,
    "skresnet18": skresnet18,
    "swin_tiny_patch4_window7_224": swin_tiny,
    "test_coatnet": coatnet_test,
    "test_maxvit": maxvit_test,
    "vit_tiny_patch16_224": vit_tiny,
    "volo_d1_224": volo_d1,
    "xcit_nano_12_p16_224": xcit_nano,
}
