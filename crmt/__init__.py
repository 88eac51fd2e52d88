"""CRMT: certifiable robust multi-modal training in PyTorch (Yang et al., ICLR 2024, arXiv 2402.06244)."""
