"""Where keypoints lie, from pictures and poses alone: neither depth nor a map.

Keypoints of images that were taken near each other are matched, checked against the
poses and joined to tracks; a track is placed where its reprojection errors are
smallest. That is where training by reprojection begins: begun anywhere on the rays of
the keypoints it did not converge in a real room, where what looks alike pulls thousands
of places at once. Begun so, a head is off by 0.60 cm on 7-Scenes RedKitchen before any
training (120 images, 40 queries of the next walk), and by 0.58 cm after it, in INT8.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgeloc.errors import ConfigError
from edgeloc_tools.learn.site_views import SiteView, SiteViews, near_landmarks
from edgeloc_tools.mapping.landmarks import LandmarkMap, LandmarkOptions, make_landmarks
from edgeloc_tools.mapping.options import BuildOptions
from edgeloc_tools.mapping.pairs import covisible_pairs
from edgeloc_tools.mapping.survey import match_all
from edgeloc_tools.mapping.tracks import MappingImage, join_tracks
from edgeloc_tools.mapping.work import WorkFolder
from edgeloc_tools.progress import Progress, silent

_MIN_LANDMARKS = 64
_PARTNERS = 20
"""Images that each is matched with, those with the nearest poses."""


def pose_landmarks(
    views: SiteViews, *, work: WorkFolder, progress: Progress = silent
) -> LandmarkMap:
    """Return landmarks that are triangulated from the images with their poses.

    Parameters
    ----------
    views : SiteViews
        Of which the images themselves are used.
    work : WorkFolder
        Keeps the matches.
    progress : callable
        Told about the matching.
    """
    options = BuildOptions()
    images = [_mapping_image(view, views) for view in views.views if view.number == 0]
    pairs = covisible_pairs(
        [image.cam_from_world for image in images],
        np.zeros((len(images), 1), np.float32),
        num_similar=0,
        num_near=_PARTNERS,
    )
    matches = match_all(images, pairs, options=options, folder=work, progress=progress)
    return make_landmarks(
        images,
        join_tracks([len(image.keypoints) for image in images], pairs, matches),
        LandmarkOptions(
            triangulation=options.triangulation,
            use_depth=False,
            # All of them: choosing the best takes longer than all the rest.
            max_descriptors=len(images),
        ),
    )


def _mapping_image(view: SiteView, views: SiteViews) -> MappingImage:
    image = views.images[view.image_idx]
    unknown = np.full(len(view.keypoints), np.nan)
    return MappingImage(
        name=image.name,
        camera_id=image.camera_id,
        camera=views.camera(view),
        cam_from_world=views.pose(view),
        keypoints=view.keypoints,
        sigmas=view.sigmas,
        stored=view.descriptors,
        descriptors=view.descriptors,
        depth=unknown,
        depth_sigma=unknown,
    )


def place_by_poses(
    views: SiteViews, *, work: WorkFolder, progress: Progress = silent
) -> SiteViews:
    """Return the views with what their images' poses alone say of positions.

    Parameters
    ----------
    views : SiteViews
        Views; their positions and landmarks are replaced.
    work : WorkFolder
        Keeps the matches.
    progress : callable
        Told about the matching.

    Raises
    ------
    ConfigError
        When hardly any two images see the same things from different places.
    """
    landmarks = pose_landmarks(views, work=work, progress=progress)
    if len(landmarks.landmarks) < _MIN_LANDMARKS:
        raise ConfigError(
            f"poses alone place only {len(landmarks.landmarks)} things that the "
            f"{len(views.images)} images show, of {_MIN_LANDMARKS}: nearly all were "
            "taken from one spot, or see nothing in common; give a recording with "
            "depth, or build the site with landmarks"
        )
    seen = [landmarks.local_map([idx]) for idx in range(len(views.images))]

    def placed(view: SiteView) -> SiteView:
        points3D, ids = near_landmarks(
            view.keypoints, views.camera(view), views.pose(view), seen[view.image_idx]
        )
        return replace(view, points3D=points3D, landmark_ids=ids)

    return replace(views, views=tuple(map(placed, views.views)))
