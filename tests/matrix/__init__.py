"""Other releases of OTP beside the one that is installed, and what is tried on them."""
