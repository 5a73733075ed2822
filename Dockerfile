# The executable in an image that holds glibc and little else. docs/container.md says how to run it.

FROM node:22-bookworm-slim AS build
WORKDIR /src
# The packages change seldom: a layer of their own.
COPY package.json package-lock.json ./
COPY scripts/setup.mjs scripts/host.mjs scripts/
RUN node scripts/setup.mjs
COPY . .
RUN npm run build

FROM gcr.io/distroless/cc-debian12
COPY --from=build /src/dist/vduse-net /vduse-net
ENTRYPOINT ["/vduse-net"]
