"""Arguments as other projects call them, diffusers first, and the names or the calls that they have here."""

from collections.abc import Iterable

NAMES = {
    "prompt": "captions",
    "prompts": "captions",
    "text": "captions",
    "negative_prompt": "negative",
    "num_inference_steps": "steps",
    "decoder_num_inference_steps": "steps",
    "prior_num_inference_steps": "prior_steps",
    "super_res_num_inference_steps": "upscale_steps",
    "guidance_scale": "guidance",
    "cfg_scale": "guidance",
    "cond_scale": "guidance",
    "decoder_guidance_scale": "guidance",
    "prior_guidance_scale": "prior_guidance",
    "scheduler": "sampler",
    "num_images_per_prompt": "n",
    "num_samples": "n",
    "callback": "on_step",
    "callback_on_step_end": "on_step",
    "torch_dtype": "dtype",
    "device_map": "device",
}
"""Their name -> ours, for what is the same."""
ANSWERS = {
    "generator": "give seed=0, or a list of seeds; every image has a seed of its own",
    "output_type": "take out.images (uint8 arrays), out.pil, or pipe.decode_tensor(...)",
    "return_dict": "a call returns an Output, with images, captions, seeds, embeddings and noise",
    "strength": "call unclip.edit.image_to_image(pipe, images, captions, strength=0.8)",
    "image": "call unclip.edit.vary(pipe, images), or unclip.edit.image_to_image(pipe, images, captions)",
    "mask_image": "call unclip.edit.inpaint(pipe, images, mask)",
    "height": "images have the size that the decoder was trained on",
    "width": "images have the size that the decoder was trained on",
    "prompt_embeds": "give embeddings to pipe.decode(embeddings)",
    "image_embeds": "give embeddings to pipe.decode(embeddings)",
    "latents": "give noise to pipe.decode(embeddings, captions, noise=...)",
}
"""Their name -> how it is done here."""


def explain_unknown(name: str, known: Iterable[str]) -> str:
    """One line about an argument that is not known: its name here, where it has one."""
    if name in NAMES:
        return f"{name} is called {NAMES[name]} here"
    if name in ANSWERS:
        return f"there is no {name} here: {ANSWERS[name]}"
    return f"there is no setting {name!r}; choose from {', '.join(known)}"
