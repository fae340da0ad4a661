"""What is sent as images: each form that is taken, and what is refused before it is decoded."""

import base64
import gzip
import io

import cv2
import numpy as np
import tifffile

from assay.serve.contract import for_sender
from assay.serve.limits import Limits


def test_what_is_no_image_is_refused_by_its_first_bytes_and_a_large_one_by_its_header(
    ask, pictures, is_refused, header_alone
):
    whole = pictures[0].read_bytes()
    for content in (b"%PDF-1.7 ...", b"GIF89a", b"\x00" * 64, b"<svg/>", b"PK\x03\x04"):
        assert is_refused(ask("POST", "/v1/parts", content=content), 415, "Image 1 is none of")
    bomb = header_alone(60_000, 60_000)
    assert is_refused(ask("POST", "/v1/parts", content=bomb), 422, "60000 x 60000")
    assert is_refused(ask("POST", "/v1/parts", content=b"\xff\xd8\xff" + b"0" * 50), 422, "read")
    files = [("image", ("a", whole)), ("image", ("b", b"no image"))]
    assert is_refused(ask("POST", "/v1/parts", files=files), 415, "Image 2")


def test_what_cannot_be_decoded_says_which(ask, pictures, is_refused):
    whole = pictures[0].read_bytes()
    files = [("image", ("a", whole)), ("image", ("b", whole[:-30]))]
    assert is_refused(ask("POST", "/v1/parts", files=files), 422, "Image 2 cannot be read")


def test_counts_of_images_and_parameters_are_checked(ask, pictures, is_refused):
    whole = pictures[0].read_bytes()
    assert is_refused(ask("POST", "/v1/parts", content=b""), 422, "no image")
    files = [("image", ("a", whole))] * 3
    reply = ask("POST", "/v1/parts", files=files, limits=Limits(views=2))
    assert is_refused(reply, 422, "3 images were sent; send 1 to 2")
    for query in ("model=best", "mask=gif"):
        assert is_refused(ask("POST", f"/v1/parts?{query}", content=whole), 422, query[:4])
    form = {"content-type": "multipart/form-data"}
    assert is_refused(ask("POST", "/v1/parts", content=whole, headers=form), 422, "boundary")
    form = {"content-type": "multipart/related; boundary=x"}
    assert is_refused(ask("POST", "/v1/parts", content=whole, headers=form), 415, "another kind")
    assert is_refused(ask("POST", "/v1/parts/", content=whole), 404, "no such path")
    for version in ("../../etc", "", "%00", "a" * 65):
        reply = ask("POST", f"/v1/models/parts?version={version}")
        assert is_refused(reply, 422, "The parameter version cannot be used")
    assert is_refused(ask("POST", "/v1/none", content=whole), 404, "no such task")
    assert is_refused(ask("POST", "/v1/layers?model=challenger", content=whole), 404, "challenger")
    assert is_refused(ask("GET", "/elsewhere"), 404, "no such path")
    assert is_refused(ask("DELETE", "/v1/models"), 405, "takes GET, not DELETE")
    assert is_refused(ask("POST", "/v1/models", content=whole), 405, "takes GET, not POST")


def test_only_known_parameters_are_taken_each_once(ask, pictures, is_refused):
    whole = pictures[0].read_bytes()
    for path, name in (("parts?alias=challenger", "'alias' is unknown"), ("parts?x", "'x'")):
        assert is_refused(ask("POST", f"/v1/{path}", content=whole), 422, name)
    twice = ask("POST", "/v1/parts?model=champion&model=challenger", content=whole)
    assert is_refused(twice, 422, "'model' is given twice")
    assert is_refused(ask("GET", "/v1/models?task=parts"), 422, "'task' is unknown")
    assert is_refused(ask("POST", "/v1/parts?%fc=1", content=whole), 422, "is unknown")


def test_a_mask_beside_its_image_is_no_view(ask, pictures, is_refused):
    files = {name: (f"{name}.png", pictures[0].read_bytes()) for name in ("image", "mask")}
    assert is_refused(ask("POST", "/v1/parts", files=files), 422, "a field 'mask'")
    del files["mask"]
    files["second"] = ("b.png", pictures[1].read_bytes())
    assert len(ask("POST", "/v1/parts", files=files).json()["views"]) == 2


def test_fields_beside_images_are_no_images(ask, pictures, is_refused):
    whole = pictures[0].read_bytes()
    plain = ask("POST", "/v1/parts", content=whole).json()["answer"]
    for data in ({"serial": "A-17"}, {"a": "1", "b": "x" * 5000}):
        files = {"image": ("a.png", whole)}
        assert ask("POST", "/v1/parts", data=data, files=files).json()["answer"] == plain
    mark = "x" * 8
    parts = [
        ("name=image; filename*=utf-8''t%c3%a4st.png", whole),
        ("name=serial", b"filename=a.png"),
        ('name=second; filename=""', b""),
    ]
    lines = [
        b"--%b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n"
        % (mark.encode(), head.encode(), content)
        for head, content in parts
    ]
    form = {"content-type": f'multipart/form-data; boundary="{mark}"'}
    for end in (b"--%b--\r\n" % mark.encode(), b"--%b--" % mark.encode()):
        content = b"to skip\r\n" + b"".join(lines) + end
        assert ask("POST", "/v1/parts", content=content, headers=form).json()["answer"] == plain
    fields = ask("POST", "/v1/parts", content=lines[1] + end, headers=form)
    assert is_refused(fields, 422, "There is no image")
    coded = lines[0].replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n", 1)
    assert is_refused(ask("POST", "/v1/parts", content=coded + end, headers=form), 415, "base64")
    many = ask("POST", "/v1/parts", content=lines[1] * 300 + end, headers=form)
    assert is_refused(many, 422, "more than 256 parts")


def test_an_empty_image_and_an_encoded_one_are_called_that(ask, pictures, is_refused):
    whole = pictures[0].read_bytes()
    empty = ask("POST", "/v1/parts", files=[("image", ("null", b""))])
    assert is_refused(empty, 422, "no image")
    for encoding in ("gzip", "br", "identity, deflate", "GZIP"):
        headers = {"content-encoding": encoding}
        reply = ask("POST", "/v1/parts", content=gzip.compress(whole), headers=headers)
        assert is_refused(reply, 415, f"content encoding {encoding}")
    headers = {"content-encoding": "identity"}
    assert ask("POST", "/v1/parts", content=whole, headers=headers).status_code == 200
    assert is_refused(ask("POST", "/v1/parts", content=gzip.compress(whole)), 415, "it is gzip")
    coded = base64.b64encode(whole)
    assert is_refused(ask("POST", "/v1/parts", content=coded), 415, "it is a PNG in base64")
    as_json = ask("POST", "/v1/parts", json={"image": coded.decode()})
    assert is_refused(as_json, 415, "it is JSON")


def test_an_uncompressed_image_of_26_megapixels_passes_by_default(ask):
    pixels = np.full((5100, 5100, 3), 40, np.uint8)
    content = cv2.imencode(".bmp", pixels)[1].tobytes()
    assert len(content) > 78e6
    reply = ask("POST", "/v1/parts", content=content)
    assert reply.status_code == 200, reply.text
    assert [reply.json()["views"][0][side] for side in ("height", "width")] == [5100, 5100]


def test_who_has_no_command_line_is_told_of_no_option(ask, is_refused):
    stack = io.BytesIO()
    tifffile.imwrite(stack, np.zeros((3, 40, 40, 3), np.uint8), photometric="rgb")
    reply = ask("POST", "/v1/parts", content=stack.getvalue())
    assert is_refused(reply, 422, "which one to read is not said; save each as a file of its own")
    floats = io.BytesIO()
    tifffile.imwrite(floats, np.full((40, 40), 0.5, np.float32))
    reply = ask("POST", "/v1/parts", content=floats.getvalue())
    assert is_refused(reply, 422, "do not tell what is white; convert the image to 8 bits")
    told = for_sender("it holds 2 pages, and --data.page 5 counts from 0")
    assert told == "it holds 2 pages, and the model's page 5 counts from 0"
