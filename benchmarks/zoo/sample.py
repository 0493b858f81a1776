"""The sample of the zoo that runs with every change: fast models of all libraries, and what must be seen of each."""

from benchmarks.zoo.rows import EQUAL, Row

# The least share of multiply-accumulates in the graph, by library and name.
FLOORS: dict[tuple[str, str], float] = {
    ("torch", "TransformerEncoder"): 1.0,
    ("torch", "LSTM classifier, both ways"): 1.0,
    ("torch", "Conv2d, BatchNorm2d"): 1.0,
    ("torchvision", "resnet18"): 1.0,
    ("torchvision", "mobilenet_v2"): 1.0,
    ("torchvision", "shufflenet_v2_x0_5"): 1.0,
    ("torchvision", "lraspp_mobilenet_v3_large"): 1.0,
    ("torchvision", "ssdlite320_mobilenet_v3_large"): 0.95,
    ("timm", "starnet_s050"): 1.0,
    ("timm", "lcnet_035"): 1.0,
    ("timm", "mobilevitv2_050"): 1.0,
    ("timm", "edgenext_xx_small"): 1.0,
    ("transformers", "BertForMaskedLM"): 1.0,
    ("transformers", "LlamaForCausalLM"): 1.0,
    ("transformers", "T5ForConditionalGeneration"): 1.0,
    ("transformers", "ViTForImageClassification"): 1.0,
    ("transformers", "Wav2Vec2ForCTC"): 1.0,
    ("transformers", "CLIPModel"): 1.0,
    ("diffusers", "UNet2DModel"): 1.0,
    ("diffusers", "DiTTransformer2DModel"): 1.0,
}


def below_floor(row: Row) -> str:
    """Return what is wrong with a row of the sample, "" where nothing is."""
    name = f"{row.library} {row.name}"
    if not row.captured or row.larger != EQUAL:
        return f"{name}: {row.capture}; with another batch size: {row.larger or 'not run'}"
    floor = FLOORS[row.key]
    if row.macs_share is None or row.macs_share < floor:
        return f"{name}: {row.macs_share:.1%} of the multiply-accumulates are seen, at least {floor:.0%} were"
    return ""
