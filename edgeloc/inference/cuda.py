"""The CUDA driver: memory, streams, events and graphs, and nothing else.

Bound by `ctypes` to ``libcuda.so.1``, which comes with the driver itself: it is there
wherever a GPU works, on a Jetson and on a PC alike, and its interface is stable. pycuda
has no wheels at all and would have to be compiled on every device with a CUDA toolkit;
cuda-python needs the release that fits the driver, and moved its modules in 13.0.
`_PROTOTYPES` was checked against ``cuda.h`` of CUDA 13.0.

TensorRT uses the primary context of a device, so that is what is retained here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from functools import cache

import numpy as np
import numpy.typing as npt

from edgeloc.errors import BackendUnavailableError, ModelError

_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")

_device_ptr = ctypes.c_uint64
_handle = c_void_p

_PROTOTYPES: dict[str, tuple[object, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(_handle), c_int),
    "cuCtxSetCurrent": (_handle,),
    "cuMemAlloc_v2": (POINTER(_device_ptr), c_size_t),
    "cuMemFree_v2": (_device_ptr,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemHostGetDevicePointer_v2": (POINTER(_device_ptr), c_void_p, c_uint),
    "cuMemcpyHtoDAsync_v2": (_device_ptr, c_void_p, c_size_t, _handle),
    "cuMemcpyDtoHAsync_v2": (c_void_p, _device_ptr, c_size_t, _handle),
    "cuStreamCreate": (POINTER(_handle), c_uint),
    "cuStreamSynchronize": (_handle,),
    "cuStreamBeginCapture_v2": (_handle, c_int),
    "cuStreamEndCapture": (_handle, POINTER(_handle)),
    "cuGraphInstantiateWithFlags": (POINTER(_handle), _handle, ctypes.c_ulonglong),
    "cuGraphLaunch": (_handle, _handle),
    "cuGraphExecDestroy": (_handle,),
    "cuGraphDestroy": (_handle,),
    "cuEventCreate": (POINTER(_handle), c_uint),
    "cuEventRecord": (_handle, _handle),
    "cuEventSynchronize": (_handle,),
    "cuEventDestroy_v2": (_handle,),
}

# Of CUdevice_attribute, and flags of the calls above.
_INTEGRATED, _MAJOR, _MINOR = 18, 75, 76
_HOST_PORTABLE, _HOST_MAPPED = 1, 2
_STREAM_NON_BLOCKING = 1
_EVENT_BLOCKING_SYNC, _EVENT_DISABLE_TIMING = 1, 2
_CAPTURE_THREAD_LOCAL = 1


class Driver:
    """The driver's calls, whose failures are errors.

    Raises
    ------
    BackendUnavailableError
        When there is no driver, or no GPU that it can use.
    """

    def __init__(self) -> None:
        library = _load()
        self._calls: dict[str, Callable[..., int]] = {}
        for name, arguments in _PROTOTYPES.items():
            try:
                call = getattr(library, name)
            except AttributeError as exc:
                raise BackendUnavailableError(
                    f"the NVIDIA driver is too old: it has no {name}; update it to one "
                    "for CUDA 11.4 or later"
                ) from exc
            call.argtypes, call.restype = arguments, c_int
            self._calls[name] = call
        code = self._calls["cuInit"](0)
        if code:
            raise BackendUnavailableError(
                f"the NVIDIA driver does not start ({self._reason(code)}); see "
                "nvidia-smi, in a container start it with --runtime nvidia or --gpus "
                "all"
            )

    def call(self, name: str, *arguments: object) -> None:
        """Call a function of the driver.

        Raises
        ------
        ModelError
            When it fails.
        """
        code = self._calls[name](*arguments)
        if code:
            raise ModelError(f"CUDA: {name} fails: {self._reason(code)}")

    def free(self, name: str, *arguments: object) -> None:
        """Call a function that gives something back, which nobody can do without."""
        self._calls[name](*arguments)

    def _reason(self, code: int) -> str:
        text = c_char_p()
        self._calls["cuGetErrorString"](code, byref(text))
        said = text.value.decode(errors="replace") if text.value else "unknown error"
        return f"{said}, error {code}"


def _load() -> ctypes.CDLL:
    for name in _LIBRARIES:
        with suppress(OSError):
            return ctypes.CDLL(name)
    raise BackendUnavailableError(
        "no NVIDIA driver: libcuda.so.1 is not on this machine; install the driver of "
        "the GPU, in a container start it with --runtime nvidia or --gpus all"
    )


class Device:
    """A GPU with one stream, on which networks run one after the other.

    Side by side they would only slow each other down: the mean stays, the slowest
    frames get slower.

    Parameters
    ----------
    index : int
        Which GPU.

    Raises
    ------
    BackendUnavailableError
        When there is none.
    """

    def __init__(self, index: int = 0) -> None:
        self.driver = driver = Driver()
        count = c_int()
        driver.call("cuDeviceGetCount", byref(count))
        if index >= count.value:
            raise BackendUnavailableError(
                f"no GPU {index}: the NVIDIA driver sees {count.value}"
            )
        device = c_int()
        driver.call("cuDeviceGet", byref(device), index)
        self._device = device.value
        name = ctypes.create_string_buffer(256)
        driver.call("cuDeviceGetName", name, len(name), self._device)
        self.name = name.value.decode(errors="replace")
        self.compute_capability = f"{self._fact(_MAJOR)}.{self._fact(_MINOR)}"
        self.integrated = bool(self._fact(_INTEGRATED))
        total = c_size_t()
        driver.call("cuDeviceTotalMem_v2", byref(total), self._device)
        self.memory_bytes = total.value
        version = c_int()
        driver.call("cuDriverGetVersion", byref(version))
        self.cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
        self._context = _handle()
        self.stream = _handle()

    def _fact(self, attribute: int) -> int:
        value = c_int()
        self.driver.call("cuDeviceGetAttribute", byref(value), attribute, self._device)
        return value.value

    def activate(self) -> None:
        """Make this the GPU of the thread that calls.

        The first time that takes a while, and some hundred MB: a process that only
        wants to know what the GPU is called never does it.
        """
        if self._context.value:
            self.driver.call("cuCtxSetCurrent", self._context)
            return
        # Never given back: the primary context ends with the process.
        context = _handle()
        self.driver.call("cuDevicePrimaryCtxRetain", byref(context), self._device)
        self.driver.call("cuCtxSetCurrent", context)
        self.driver.call("cuStreamCreate", byref(self.stream), _STREAM_NON_BLOCKING)
        self._context = context

    def synchronize(self) -> None:
        """Wait until everything that was asked for is done."""
        self.driver.call("cuStreamSynchronize", self.stream)

    @property
    def stream_handle(self) -> int:
        """The stream, as TensorRT takes it."""
        return int(self.stream.value or 0)


@cache
def open_device(index: int = 0) -> Device:
    """Return a GPU; the same one for all networks of a process.

    Raises
    ------
    BackendUnavailableError
        When there is none, with what to do.
    """
    return Device(index)


class Buffer:
    """An array that host and GPU share.

    Where both have the same memory (Jetson), the GPU works on the host's pages and
    nothing is copied; elsewhere pinned pages are copied asynchronously.

    Parameters
    ----------
    device : Device
        The GPU.
    shape : tuple of int
        Of the array.
    dtype : dtype
        Of its elements.
    """

    def __init__(
        self,
        device: Device,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
    ) -> None:
        self._device = device
        element = np.dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64))
        self._num_bytes = max(count * element.itemsize, 1)
        driver = device.driver
        self._pages, self._memory = c_void_p(), _device_ptr()
        driver.call(
            "cuMemHostAlloc",
            byref(self._pages),
            self._num_bytes,
            _HOST_PORTABLE | _HOST_MAPPED,
        )
        if device.integrated:
            driver.call(
                "cuMemHostGetDevicePointer_v2", byref(self._memory), self._pages, 0
            )
        else:
            driver.call("cuMemAlloc_v2", byref(self._memory), self._num_bytes)
        raw = (ctypes.c_ubyte * self._num_bytes).from_address(
            int(self._pages.value or 0)
        )
        self.host = np.frombuffer(memoryview(raw), element, count).reshape(shape)

    @property
    def address(self) -> int:
        """Where the GPU finds it."""
        return int(self._memory.value)

    def upload(self) -> None:
        """Enqueue the copy to the GPU, where there is one to make."""
        if not self._device.integrated:
            self._device.driver.call(
                "cuMemcpyHtoDAsync_v2",
                self._memory,
                self._pages,
                self._num_bytes,
                self._device.stream,
            )

    def download(self) -> None:
        """Enqueue the copy to the host, where there is one to make."""
        if not self._device.integrated:
            self._device.driver.call(
                "cuMemcpyDtoHAsync_v2",
                self._pages,
                self._memory,
                self._num_bytes,
                self._device.stream,
            )

    def close(self) -> None:
        """Give the memory back; nobody may use `host` any more."""
        if not self._device.integrated:
            self._device.driver.free("cuMemFree_v2", self._memory)
        self._device.driver.free("cuMemFreeHost", self._pages)


class Event:
    """A mark in the stream that can be waited for.

    Parameters
    ----------
    device : Device
        The GPU.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._event = _handle()
        # Waiting must leave the core to the other stages, hence no spinning.
        flags = _EVENT_BLOCKING_SYNC | _EVENT_DISABLE_TIMING
        device.driver.call("cuEventCreate", byref(self._event), flags)

    def record(self) -> None:
        """Put the mark behind all that was asked for so far."""
        self._device.driver.call("cuEventRecord", self._event, self._device.stream)

    def wait(self) -> None:
        """Return when the stream has come to the mark."""
        self._device.driver.call("cuEventSynchronize", self._event)

    def close(self) -> None:
        """Give it back."""
        self._device.driver.free("cuEventDestroy_v2", self._event)


class Graph:
    """What `enqueue` asks of the stream, to be asked again with one call.

    Parameters
    ----------
    device : Device
        The GPU.
    enqueue : callable
        Only asks, allocates nothing and waits for nothing.

    Raises
    ------
    ModelError
        When it cannot be captured.
    """

    def __init__(self, device: Device, enqueue: Callable[[], None]) -> None:
        driver = device.driver
        self._device = device
        self._run = _handle()
        graph = _handle()
        driver.call("cuStreamBeginCapture_v2", device.stream, _CAPTURE_THREAD_LOCAL)
        try:
            enqueue()
        finally:
            # A capture that is not ended would swallow all that follows.
            driver.free("cuStreamEndCapture", device.stream, byref(graph))
        if not graph.value:
            raise ModelError("CUDA: the network cannot be captured as a graph")
        try:
            driver.call("cuGraphInstantiateWithFlags", byref(self._run), graph, 0)
        finally:
            driver.free("cuGraphDestroy", graph)

    def launch(self) -> None:
        """Ask for all of it again."""
        self._device.driver.call("cuGraphLaunch", self._run, self._device.stream)

    def close(self) -> None:
        """Give it back."""
        self._device.driver.free("cuGraphExecDestroy", self._run)
