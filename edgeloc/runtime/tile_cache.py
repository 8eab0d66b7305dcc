"""The tiles that are in memory, bounded in bytes, and read ahead of time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edgeloc.errors import (
    ConfigError,
    MapError,
    TileFormatError,
    TileMissingError,
    TileSlowError,
)
from edgeloc.tiles.layout import Tile
from edgeloc.tiles.tile_table import TileTable
from edgeloc.types import FloatArray, IntArray

_FIRST_GROWTH = 4.0
"""Bytes in memory per byte on disk, until tiles were read that tell."""
PREFETCH_SHARE = 0.5
"""Part of the cache that tiles may take which nobody has asked for yet."""


class TileReader(Protocol):
    """What the cache needs of a site."""

    @property
    def tiles(self) -> TileTable:
        """The tile table."""

    def read_tile(self, tile_idx: int, /) -> Tile:
        """Return one tile, from disk."""


@dataclass(slots=True, eq=False)
class _Loading:
    """A tile that is being read; whoever waits for it holds on to this."""

    done: threading.Event = field(default_factory=threading.Event)
    tile: Tile | None = None
    error: MapError | None = None


def _copy(error: MapError) -> MapError:
    """Return the same error without its traceback, which would hold on to the bytes."""
    copy = type(error)(str(error))
    if isinstance(error, TileFormatError) and isinstance(copy, TileFormatError):
        copy.offset = error.offset
    return copy


class TileCache:
    """Keeps the tiles that were used last.

    Tiles are asked for by one thread. A second one, started when it is first needed,
    reads what will be asked for (`prefetch`) and what must not make a frame late
    (`load` with a timeout).

    A tile that is corrupt stays corrupt: it is not read again, so that a bad block
    does not cost a disk access per frame. A tile that is missing is looked for again.

    Parameters
    ----------
    site : Site
        Where tiles are read from.
    max_bytes : int
        Bound on the decoded tiles that are kept. A tile that is larger by itself is
        handed out and not kept.

    Attributes
    ----------
    hits, misses : int
        Loads that were answered from memory, and others.
    num_bytes : int
        Decoded size of the tiles kept.
    num_reads, bytes_read : int
        Files read, by whichever thread, and their bytes.
    frame_reads, frame_bytes : int
        The same since `start_frame`.
    """

    def __init__(self, site: TileReader, *, max_bytes: int) -> None:
        if max_bytes <= 0:
            raise ConfigError(f"{max_bytes=} of the tile cache must be > 0")
        self.hits = 0
        self.misses = 0
        self.num_bytes = 0
        self.num_reads = 0
        self.bytes_read = 0
        self.frame_reads = 0
        self.frame_bytes = 0
        self._site = site
        self._max_bytes = max_bytes
        self._tiles: OrderedDict[int, Tile] = OrderedDict()
        self._corrupt: dict[int, MapError] = {}
        self._growth = _FIRST_GROWTH
        # All of the above and below belongs to whoever holds this.
        self._state = threading.Condition()
        self._loading: dict[int, _Loading] = {}
        self._urgent: list[int] = []
        self._ahead: list[int] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._tiles)

    def __contains__(self, tile_idx: object) -> bool:
        return tile_idx in self._tiles

    def start_frame(self) -> None:
        """Count the reads of a frame from here."""
        with self._state:
            self.frame_reads = self.frame_bytes = 0

    def load(self, tile_idx: int, *, timeout_s: float | None = None) -> Tile:
        """Return a tile, from memory or from disk.

        Parameters
        ----------
        tile_idx : int
            Row of the site's tile table.
        timeout_s : float, optional
            Wait no longer for the disk; the tile is read all the same, and is there
            next time. By default the caller waits, or reads the tile itself.

        Returns
        -------
        Tile

        Raises
        ------
        TileFormatError
            When the tile is corrupt, now or the first time.
        TileMissingError
            When its file is gone.
        TileSlowError
            When the time was up.
        """
        own = False
        with self._state:
            tile = self._tiles.get(tile_idx)
            if tile is not None:
                self.hits += 1
                self._tiles.move_to_end(tile_idx)
                return tile
            self.misses += 1
            if tile_idx in self._corrupt:
                raise _copy(self._corrupt[tile_idx])
            loading = self._loading.get(tile_idx)
            if loading is None:
                loading = self._loading[tile_idx] = _Loading()
                own = timeout_s is None
                if not own:
                    self._urgent.append(tile_idx)
                    self._wake()
            elif tile_idx in self._ahead:
                # Announced and not begun: what is needed now comes first.
                self._ahead.remove(tile_idx)
                own = timeout_s is None
                if not own:
                    self._urgent.append(tile_idx)
                    self._wake()
        if own:
            self._read(tile_idx, loading)
        elif not loading.done.wait(timeout_s):
            raise TileSlowError(
                f"tile {tile_idx} was not read within {timeout_s:g} s; it is still "
                "being read"
            )
        if loading.error is not None:
            raise loading.error if own else _copy(loading.error)
        if loading.tile is None:
            raise TileMissingError(f"tile {tile_idx} was not read: reading was stopped")
        return loading.tile

    def prefetch(self, tile_idxs: Iterable[int]) -> None:
        """Read tiles in the background, the first ones first.

        Replaces what an earlier call asked for and was not begun. No more is read than
        half of the cache holds, so that what is in use stays.

        Parameters
        ----------
        tile_idxs : iterable of int
            Rows of the site's tile table, the most likely first.
        """
        with self._state:
            for tile_idx in self._ahead:
                self._loading.pop(tile_idx).done.set()
            self._ahead.clear()
            room = self._max_bytes * PREFETCH_SHARE
            for tile_idx in tile_idxs:
                size = self._growth * self._site.tiles[tile_idx].num_bytes
                room -= size
                if room < 0:
                    break
                if (
                    tile_idx not in self._tiles
                    and tile_idx not in self._corrupt
                    and tile_idx not in self._loading
                ):
                    self._loading[tile_idx] = _Loading()
                    self._ahead.append(tile_idx)
            if self._ahead:
                self._wake()

    def tiles_near(self, center: FloatArray, radius: float) -> IntArray:
        """Return the tiles that a camera at a place will need, the nearest first.

        Parameters
        ----------
        center : ndarray of shape (3,), float64
            Where it will be, m.
        radius : float
            M.

        Returns
        -------
        ndarray of int64
            Tiles with landmarks within `radius`; then what the keyframes of those that
            are in memory see beyond it.
        """
        near = self._site.tiles.near(center, radius)
        with self._state:
            known = [self._tiles[i] for i in near.tolist() if i in self._tiles]
        beyond = [tile.seen_tile_idx for tile in known]
        rows = dict.fromkeys(np.concatenate([near, *beyond]).tolist())
        return np.fromiter(rows, dtype=np.int64, count=len(rows))

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is being read in the background; return whether so."""
        with self._state:
            return self._state.wait_for(lambda: not self._loading, timeout_s)

    def close(self) -> None:
        """Stop reading ahead. Tiles in memory stay."""
        with self._state:
            self._closed = True
            for tile_idx in (*self._ahead, *self._urgent):
                self._loading.pop(tile_idx).done.set()
            self._ahead.clear()
            self._urgent.clear()
            self._state.notify_all()
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()

    def _wake(self) -> None:
        """Let the reading thread look; it is started here the first time."""
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(
                target=self._run, name="tile-cache", daemon=True
            )
            self._thread.start()
        self._state.notify_all()

    def _run(self) -> None:
        try:
            while self._read_next():
                pass
        finally:
            # Whatever went wrong: the next one who needs it gets another thread.
            with self._state:
                if self._thread is threading.current_thread():
                    self._thread = None

    def _read_next(self) -> bool:
        """Wait for a tile to read, and read it; return whether to go on."""
        with self._state:
            self._state.wait_for(lambda: self._closed or self._urgent or self._ahead)
            if self._closed:
                return False
            tile_idx = (self._urgent or self._ahead).pop(0)
            loading = self._loading[tile_idx]
        self._read(tile_idx, loading)
        return True

    def _read(self, tile_idx: int, loading: _Loading) -> None:
        """Read a tile, keep it, and tell who waits."""
        tile, error = None, None
        try:
            tile = self._site.read_tile(tile_idx)
        except MapError as exc:
            error = exc
        finally:
            # Also when it is something unexpected: nobody shall wait for ever.
            with self._state:
                self._finish(tile_idx, loading, tile=tile, error=error)

    def _finish(
        self,
        tile_idx: int,
        loading: _Loading,
        *,
        tile: Tile | None,
        error: MapError | None,
    ) -> None:
        num_bytes = self._site.tiles[tile_idx].num_bytes
        self.num_reads += 1
        self.frame_reads += 1
        self.bytes_read += num_bytes
        self.frame_bytes += num_bytes
        loading.tile, loading.error = tile, error
        if tile is not None:
            self._keep(tile)
            self._growth += (tile.num_bytes / num_bytes - self._growth) / 8
        elif isinstance(error, TileFormatError):
            self._corrupt[tile_idx] = _copy(error)
        self._loading.pop(tile_idx, None)
        loading.done.set()
        self._state.notify_all()

    def _keep(self, tile: Tile) -> None:
        if tile.num_bytes > self._max_bytes:
            return
        self._tiles[tile.tile_idx] = tile
        self.num_bytes += tile.num_bytes
        while self.num_bytes > self._max_bytes:
            _, oldest = self._tiles.popitem(last=False)
            self.num_bytes -= oldest.num_bytes
