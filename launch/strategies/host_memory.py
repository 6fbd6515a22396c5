"""What becomes of host memory that is freed."""

import ctypes

M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
SMALLEST = 1 << 20  # bytes


def return_what_is_freed() -> None:
    """Let glibc give blocks of a mebibyte and more back to the system as soon as they are freed.

    By itself it comes to keep freed blocks of up to 32 MiB. A model in pieces frees whole layers and gradients all the
    time, and on CPU ranks what was kept came to a third of the peak. The price is time: memory of activations is
    fetched anew, which is why one process and DDP do without. Other C libraries have no such switch.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, SMALLEST)
