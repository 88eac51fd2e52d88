"""Which containers are read: ffmpeg's names of formats that are files of media alone.

Left out are playlists, patterns of pictures, subtitles and sessions (HLS, DASH, concat, image2, SDP ...), which name
other files or addresses, and formats that any text or any bytes would pass for.
"""

from __future__ import annotations

FORMATS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "asf", "ogg", "rm", "wav", "mp3", "flac", "aac"),
    *("mxf", "dv", "gif", "nut", "wtv", "gxf", "swf", "nsv", "nuv", "pva", "ivf", "yuv4mpegpipe", "apng"),
    *("h264", "hevc", "m4v", "obu", "av1", "vc1test", "mpjpeg", "flic", "roq", "smk", "bink", "film_cpk", "ea", "thp"),
    *("aiff", "caf", "au", "w64", "ac3", "eac3", "dts", "amr", "ape", "wv", "tta", "tak", "mpc", "mpc8", "voc", "xwma"),
)
NAMED = (
    "MP4, MOV, Matroska, WebM, AVI, MPEG-TS and -PS, MXF, DV, FLV, WMV/ASF, Ogg, NUT, RealMedia, WTV, GXF, GIF, APNG, "
    "Y4M, IVF, raw H.264, HEVC and AV1, WAV, AIFF, CAF, MP3, AAC, FLAC, AC-3"
)
