"""Training: photos to latents, latents to crops, objectives, and one loop for all of them."""
