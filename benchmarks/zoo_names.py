"""The networks of `zoo.py`: one of each family of timm, among its smallest."""

# family: (network, side of the image, options of timm.create_model)
FAMILIES: dict[str, tuple[str, int, dict[str, object]]] = {
    name.split(":")[0]: (name.split(":")[-1], size, options)
    for size, options, names in (
        (64, {}, """
         resnet:resnet10t mobilenet_v3:mobilenetv3_small_050 regnety:regnety_002 densenet:densenet121
         shufflenet_like_mixnet:mixnet_s convnext:convnext_atto ghostnet:ghostnet_050 repvgg:repvgg_a0
         res2net:res2net50_14w_8s mobileone:mobileone_s0 lcnet:lcnet_035 hgnetv2:hgnetv2_b0
         mobilenet_v1:mobilenetv1_100 mobilenet_v2:mobilenetv2_035 mobilenet_v4:mobilenetv4_conv_small_035
         mobilenet_v4_hybrid:mobilenetv4_hybrid_medium_075 efficientnet:efficientnet_b0
         efficientnet_lite:efficientnet_lite0
         efficientnet_v2:tf_efficientnetv2_b0 efficientnet_edge:efficientnet_es
         efficientnet_cond:efficientnet_cc_b0_4e
         mnasnet:mnasnet_small fbnet:fbnetc_100 fbnet_v3:fbnetv3_b hardcorenas:hardcorenas_a tinynet:tinynet_e
         lcnet_v2:lcnetv2_small ghostnet_v2:ghostnetv2_100 ghostnet_v3:ghostnetv3_050 rexnet:rexnetr_100
         repghostnet:repghostnet_050 repvit:repvit_m0_9 fastvit:fastvit_t8 resnet_v2:resnetv2_18
         senet:legacy_seresnet18
         sknet:skresnet18 resnest:resnest14d dla:dla46_c dla_x:dla46x_c dpn:dpn48b gernet:gernet_s
         gcresnet:gcresnext26ts
         ecaresnet:eca_resnext26ts regnetx:regnetx_002 regnetz:regnetz_005 nf_regnet:nf_regnet_b0
         nf_resnet:nf_resnet26 nfnet:test_nfnet cs3darknet:cs3darknet_s cspresnet:cspresnet50 darknet:darknet17
         selecsls:selecsls42 vovnet:ese_vovnet19b_slim_dw hrnet:hrnet_w18_small xception_aligned:xception41
         convnext_v2:convnextv2_atto convmixer:convmixer_768_32 edgenext:edgenext_xx_small
         mobilevit:mobilevit_xxs
         mobilevit_v2:mobilevitv2_050 poolformer:poolformer_s12 convformer:convformer_s18
         inception_next:inception_next_atto starnet:starnet_s050 shvit:shvit_s1 fasternet:fasternet_t0
         hgnet:hgnet_tiny
         efficientvit_mit:efficientvit_b0 nextvit:nextvit_small focalnet:focalnet_tiny_srf
         swiftformer:swiftformer_xs
         pvt_v2:pvt_v2_b0 mambaout:mambaout_femto rdnet:rdnet_tiny cspnext:cspnext_tiny cpubone:cpubone_nano
         lowformer:lowformer_b0 iformer:iformer_t blurred:densenetblur121d efficientvim:efficientvim_m1
         anti_aliased:resnetaa34d tresnet:tresnet_l"""),
        (128, {}, "inception_v3:inception_v3 inception_v4:inception_v4 inception_resnet:inception_resnet_v2 "
                  "xception:legacy_xception csatv2:csatv2"),
        (64, {"mlp_ratio": 0.125}, "vgg:vgg11_bn"),
        (64, {"img_size": 64}, "vit:vit_tiny_patch16_224 xcit:xcit_nano_12_p16_224 "
                               "coatnet:coatnet_pico_rw_224 maxvit:maxvit_pico_rw_256 visformer:visformer_tiny "
                               "twins:twins_svt_small coat:coat_lite_tiny"),
        (224, {}, "levit:levit_conv_128s efficientformer:efficientformer_l1 efficientformer_v2:efficientformerv2_s0 "
                  "efficientvit_msra:efficientvit_m0 pit:pit_ti_224 gcvit:gcvit_xxtiny convit:convit_tiny "
                  "swin:swin_tiny_patch4_window7_224 tiny_vit:tiny_vit_5m_224 davit:davit_tiny"),
        (128, {}, "botnet:botnet26t_256 halonet:halonet26t lambda_resnet:lambda_resnet26t bat_resnet:bat_resnext26ts"),
    )
    for name in names.split()
}  # fmt: skip
