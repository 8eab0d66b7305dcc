"""The tiles that are in memory, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict

from edgeloc.errors import ConfigError, TileFormatError
from edgeloc.tiles.layout import Tile
from edgeloc.tiles.reader import Site


def _copy(error: TileFormatError) -> TileFormatError:
    """Return the same error without its traceback, which would hold on to the bytes."""
    copy = TileFormatError(str(error))
    copy.offset = error.offset
    return copy


class TileCache:
    """Keeps the tiles that were used last; for one thread.

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
    """

    def __init__(self, site: Site, *, max_bytes: int) -> None:
        if max_bytes <= 0:
            raise ConfigError(f"{max_bytes=} of the tile cache must be > 0")
        self.hits = 0
        self.misses = 0
        self.num_bytes = 0
        self._site = site
        self._max_bytes = max_bytes
        self._tiles: OrderedDict[int, Tile] = OrderedDict()
        self._corrupt: dict[int, TileFormatError] = {}

    def __len__(self) -> int:
        return len(self._tiles)

    def __contains__(self, tile_idx: object) -> bool:
        return tile_idx in self._tiles

    def load(self, tile_idx: int) -> Tile:
        """Return a tile, from memory or from disk.

        Parameters
        ----------
        tile_idx : int
            Row of the site's tile table.

        Returns
        -------
        Tile

        Raises
        ------
        TileFormatError
            When the tile is corrupt, now or the first time.
        TileMissingError
            When its file is gone.
        """
        tile = self._tiles.get(tile_idx)
        if tile is not None:
            self.hits += 1
            self._tiles.move_to_end(tile_idx)
            return tile
        self.misses += 1
        if tile_idx in self._corrupt:
            raise _copy(self._corrupt[tile_idx])
        try:
            tile = self._site.read_tile(tile_idx)
        except TileFormatError as exc:
            self._corrupt[tile_idx] = _copy(exc)
            raise
        self._keep(tile)
        return tile

    def _keep(self, tile: Tile) -> None:
        if tile.num_bytes > self._max_bytes:
            return
        self._tiles[tile.tile_idx] = tile
        self.num_bytes += tile.num_bytes
        while self.num_bytes > self._max_bytes:
            _, oldest = self._tiles.popitem(last=False)
            self.num_bytes -= oldest.num_bytes
