"""Hugging Face's SAM 2 and SAM 3 with random weights, at the sizes of a configuration: what this project's are compared with."""

import torch

from bench.model.sizes import HieraConfig, PyramidConfig


def oracle(config: PyramidConfig, seed: int = 0):
    """Its library's model. Every tensor is drawn, also what starts as zeros."""
    model = (_sam2 if isinstance(config, HieraConfig) else _sam3)(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        spread = 1.0 if "positional" in name else 0.1 if tensor.ndim == 1 else (1.5 / tensor[0].numel()) ** 0.5
        tensor.normal_(0, spread, generator=generator)
        tensor.add_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    shared = model.shared_image_embedding.positional_embedding  # tied in files, and no parameter
    shared.copy_(model.prompt_encoder.shared_embedding.positional_embedding)
    return model


def _decoder(config):
    return {"hidden_size": config.decoder_width, "mlp_dim": config.decoder_mlp, "iou_head_hidden_dim": config.iou_width}


def _prompts(config):
    return {"hidden_size": config.decoder_width, "image_size": config.image_size, "patch_size": config.patch_size}


def _maps(config):
    return [[config.grid * times] * 2 for times in (4, 2, 1)]


def _sam2(config):
    from transformers.models.sam2 import configuration_sam2 as sizes
    from transformers.models.sam2.modeling_sam2 import Sam2Model

    widths = [config.width * 2**stage // 4 for stage in range(4)]
    trunk = sizes.Sam2HieraDetConfig(
        hidden_size=widths[0],
        image_size=[config.image_size] * 2,
        blocks_per_stage=list(config.stages),
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[config.heads_of(stage) for stage in range(4)],
        window_size_per_stage=list(config.windows),
        global_attention_blocks=list(config.global_blocks),
        window_positional_embedding_background_size=[config.positions] * 2,
    )
    vision = sizes.Sam2VisionConfig(
        backbone_config=trunk,
        backbone_channel_list=widths[::-1],
        backbone_feature_sizes=_maps(config),
        fpn_hidden_size=config.decoder_width,
    )
    prompts, decoder = sizes.Sam2PromptEncoderConfig(**_prompts(config)), sizes.Sam2MaskDecoderConfig(**_decoder(config))
    return Sam2Model(sizes.Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))


def _sam3(config):
    from transformers.models.sam3.configuration_sam3 import Sam3VisionConfig, Sam3ViTConfig
    from transformers.models.sam3_tracker import configuration_sam3_tracker as sizes
    from transformers.models.sam3_tracker.modeling_sam3_tracker import Sam3TrackerModel

    trunk = Sam3ViTConfig(
        hidden_size=config.width,
        intermediate_size=config.mlp,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        window_size=config.window,
        pretrain_image_size=config.positions * config.patch_size,
        global_attn_indexes=list(config.global_blocks),
    )
    vision = Sam3VisionConfig(
        backbone_config=trunk,
        fpn_hidden_size=config.decoder_width,
        backbone_feature_sizes=_maps(config),
        scale_factors=[
            4.0,
            2.0,
            1.0,
        ],  # of the coarser one, which nothing reads, the library would take it that no memory is there
    )
    prompts = sizes.Sam3TrackerPromptEncoderConfig(**_prompts(config))
    decoder = sizes.Sam3TrackerMaskDecoderConfig(**_decoder(config))
    return Sam3TrackerModel(sizes.Sam3TrackerConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))
