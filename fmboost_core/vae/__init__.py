"""Autoencoders: tiny ones (TAESD) and full ones (diffusers), behind one surface."""
