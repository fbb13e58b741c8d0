"""What artifactapi replaces: a small application that stores whole bodies in S3.

Written as such applications usually are: a body is held in memory, put into the bucket, and
answered; a hit is read whole from the bucket. Run by `scripts/bench` with uvicorn; configured by
BENCH_S3 (endpoint,access,secret,bucket), BENCH_PREFIX, BENCH_FAST and BENCH_SLOW (ports).
"""

import io
import os
from urllib.parse import urlsplit

import requests
from fastapi import FastAPI, HTTPException, Response
from minio import Minio
from minio.error import S3Error

endpoint, access, secret, bucket = os.environ["BENCH_S3"].split(",")
where = urlsplit(endpoint)
store = Minio(where.netloc, access_key=access, secret_key=secret, secure=where.scheme == "https")
bases = {
    "fast": f"http://127.0.0.1:{os.environ['BENCH_FAST']}",
    "slow": f"http://127.0.0.1:{os.environ['BENCH_SLOW']}",
}
prefix = os.environ["BENCH_PREFIX"]
app = FastAPI()


@app.get("/api/{remote}/{path:path}")
def artifact(remote: str, path: str) -> Response:
    if remote not in bases:
        raise HTTPException(404, "no such remote")
    key = f"{prefix}/{remote}/{path}"
    try:
        stored = store.get_object(bucket, key)
        try:
            return Response(stored.read(), media_type="application/octet-stream")
        finally:
            stored.close()
            stored.release_conn()
    except S3Error as error:
        if error.code != "NoSuchKey":
            raise HTTPException(502, str(error)) from error
    answer = requests.get(f"{bases[remote]}/api/{remote}/{path}", timeout=300)
    if answer.status_code != 200:
        raise HTTPException(answer.status_code, "upstream")
    store.put_object(bucket, key, io.BytesIO(answer.content), len(answer.content))
    return Response(answer.content, media_type="application/octet-stream")
