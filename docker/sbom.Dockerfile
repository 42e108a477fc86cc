# The bill of materials of an image, for `make images`: what the records of Debian's packages and of Python's in IMAGE say,
# in /sbom.cdx.json. The tools are those of docker/sbom.lock; no image that anybody runs has them.
ARG IMAGE=notary_server
FROM ${IMAGE} AS image

FROM ${IMAGE}
USER root
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /tools
COPY docker/sbom.lock ./
RUN python3 -m venv . && bin/pip install --require-hashes --requirement sbom.lock
COPY pyproject.toml ./
# As the image has it, without python3-venv.
COPY --from=image /var/lib/dpkg /image/var/lib/dpkg
ARG NAME=notary-server
ARG VERSION=
RUN sed -i "s/^dynamic = .*/version = \"$VERSION\"/" pyproject.toml \
    && bin/cyclonedx-py environment --pyproject pyproject.toml --output-file python.cdx.json /opt/notary/bin/python \
    && bin/debsbom generate --sbom-type cdx --root /image --out debian.cdx.json \
    && bin/debsbom merge --distro-name "$NAME" --distro-version "$VERSION" --out /sbom.cdx.json \
        python.cdx.json debian.cdx.json
